"""Generators of CT images: a mask and a dose in, images in HU out."""

from ldctlib.generators.registry import GENERATORS, Generator, load, table
