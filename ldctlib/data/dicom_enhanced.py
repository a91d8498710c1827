"""Enhanced multi-frame CT (DICOM PS3.3, A.38 and C.7.6.16): one file is a volume, and what a single image says in its
header stands in functional groups, shared by all frames or a frame's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ldctlib.errors import ScanError

SHARED, OWN = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUPS = """
    PixelMeasuresSequence PlanePositionSequence PlaneOrientationSequence PixelValueTransformationSequence
    FrameContentSequence CTImageFrameTypeSequence CTReconstructionSequence CTAcquisitionDetailsSequence
""".split()
"""Of the functional groups, those that reading needs."""
STACKS = ("StackID", "ImageOrientationPatient", "PixelSpacing", "TemporalPositionIndex")
"""What tells volumes in one file apart."""


def is_enhanced(header: Any) -> bool:
    """Whether the header is of enhanced CT, or of CT converted to it."""
    from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

    return header.get("SOPClassUID") in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)


def frame_headers(file: Path, header: Any) -> list[Any]:
    """Of each frame, in the file's order, a header as a single image has it; InstanceNumber counts from 1.

    Raises ScanError where frames lack their groups, and for several stacks or phases in one file, which are named.
    """
    from pydicom.dataset import Dataset

    own, frames = header.get(OWN) or [], int(header.get("NumberOfFrames") or 1)
    if len(own) != frames:
        raise ScanError(f"{file} describes {len(own)} of its {frames} frames: it seems damaged")
    common = {element.tag: element for element in header if element.VR != "SQ"}
    shared = {tag: element for group in _groups((header.get(SHARED) or [None])[0]) for tag, element in group.items()}
    out = []
    for number, item in enumerate(own, start=1):
        # what the image as a whole says of several frames (ImageType) yields to what a frame says
        flat = Dataset(common | shared | {t: e for group in _groups(item) for t, e in group.items()})
        flat.add_new("InstanceNumber", "IS", number)  # setting it would change the one that all share
        out.append(flat)
    _refuse_several(file, out)
    return out


def _groups(item: Any) -> Iterator[dict]:
    for keyword in GROUPS:
        for group in (item.get(keyword) if item is not None else None) or []:
            yield {element.tag: element for element in group}


def _refuse_several(file: Path, frames: list[Any]) -> None:
    def key(frame: Any) -> tuple:
        plane = (tuple(round(float(x), 2) for x in frame.get(k) or ()) for k in STACKS[1:3])
        return (str(frame.get(STACKS[0], "")), *plane, str(frame.get(STACKS[3], "")))

    found = Counter(map(key, frames))
    places = {(k[:-1], str(frame.get("ImagePositionPatient"))) for frame in frames for k in [key(frame)]}
    # frames taken one after the other at places of their own are one volume, whatever their times
    if len({k[:-1] for k in found}) > 1 or (len(found) > 1 and len(places) < len(frames)):
        which = [i for i in range(len(STACKS)) if len({k[i] for k in found}) > 1]
        told = "; ".join(f"{', '.join(f'{STACKS[i]} {k[i]}' for i in which)}: {n} frames" for k, n in found.items())
        raise ScanError(f"{file} holds {len(found)} stacks or phases ({told[:400]}): write each into a file of its own")


def rescales(header: Any, frames: Sequence[int]) -> list[tuple[float, float]]:
    """Slope and intercept of each of a file's frames; 1 and 0 where the file says nothing."""

    def said(source: Any) -> tuple[float, float]:
        return float(source.get("RescaleSlope") or 1), float(source.get("RescaleIntercept") or 0)

    if not is_enhanced(header):
        return [said(header)] * len(frames)
    shared = (header.get(SHARED) or [{}])[0].get("PixelValueTransformationSequence")
    return [said((header[OWN][k].get("PixelValueTransformationSequence") or shared)[0]) for k in frames]


def derive_frames(dataset: Any, header: Any, frames: Sequence[int]) -> None:
    """Make a copy of an enhanced header say of these frames of it, in this order, that they are derived.

    What a single image says of its derivation in its header goes to each frame's DerivationImageSequence.
    """
    from pydicom.dataset import Dataset

    kind = [*(header.get("ImageType") or []), "", "", "", ""]
    kind = ["DERIVED", "PRIMARY", kind[2] or "VOLUME", "FILTERED"]  # SECONDARY is not for enhanced images
    dataset.ImageType = kind
    own = dataset[OWN].value
    dataset[OWN].value = [own[k] for k in frames]
    dataset.NumberOfFrames = len(frames)
    codes, sources = dataset.get("DerivationCodeSequence"), dataset.get("SourceImageSequence")
    for keyword in ("DerivationCodeSequence", "SourceImageSequence", "SourceImageEvidenceSequence"):
        dataset.pop(keyword, None)
    if sources and header.get("SeriesInstanceUID") and header.get("StudyInstanceUID"):
        dataset.SourceImageEvidenceSequence = [_evidence(header)]
    for item in (dataset.get(SHARED) or [])[:1]:
        item.pop("DerivationImageSequence", None)
        for group in item.get("CTImageFrameTypeSequence") or []:
            group.FrameType = kind
    for k, item in zip(frames, dataset[OWN].value, strict=True):
        for group in item.get("CTImageFrameTypeSequence") or []:
            group.FrameType = [*kind[:2], *((list(group.get("FrameType") or []) + kind)[2:3]), kind[3]]
        derivation = Dataset()
        derivation.DerivationDescription = dataset.DerivationDescription
        if codes:
            derivation.DerivationCodeSequence = list(codes)
        derivation.SourceImageSequence = []
        for source in sources or []:
            reference = Dataset({element.tag: element for element in source})
            reference.ReferencedFrameNumber = k + 1
            derivation.SourceImageSequence.append(reference)
        item.DerivationImageSequence = [derivation]
    dataset.pop("DerivationDescription", None)


def _evidence(header: Any) -> Any:
    from pydicom.dataset import Dataset

    study, series, image = Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = header.SeriesInstanceUID, [image]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = header.StudyInstanceUID, [series]
    return study
