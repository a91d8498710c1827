"""The page of a run: one self-contained ``index.html`` that needs no network and no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

MAX_METRICS = 12

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #009e73; --bad: #d55e00; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
header p { margin: .2rem 0 1.5rem; opacity: .75; }
section { border-top: 1px solid var(--line); padding: 1rem 0 1.5rem; }
h2 { font-size: 1.15rem; margin: 0; }
.about { margin: .2rem 0 .8rem; opacity: .85; }
.done { color: var(--good); } .failed { color: var(--bad); } .done, .failed { font-weight: 600; }
pre { background: var(--soft); border-left: 3px solid var(--bad); padding: .6rem; white-space: pre-wrap; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .1rem 1.5rem; }
dl div { display: flex; justify-content: space-between; border-bottom: 1px dotted var(--line); gap: 1rem; }
dt { opacity: .8; overflow-wrap: anywhere; } dd { margin: 0; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem; }
.figures a { background: #fff; border: 1px solid var(--line); display: block; padding: 4px; }
.figures img { width: 100%; height: 9rem; object-fit: contain; display: block; }
.figures small { color: #222; display: block; line-height: 1.3; padding-top: 3px; }
"""


def build(records: Iterable[Mapping[str, Any]], *, profile: str) -> str:
    """The page as HTML. Each record has name, title, status (``"done"`` or ``"failed"``), error, seconds, profile,
    figures (paths relative to the page), their captions, metrics and html (whether ``NAME.html`` exists)."""
    records = list(records)
    failures = sum(record["status"] != "done" for record in records)
    total = sum(record["seconds"] for record in records)
    outcome = f"{failures} failed" if failures else "all done"
    sections = "\n".join(_section(record) for record in records)
    count = f"{len(records)} notebook{'s' if len(records) != 1 else ''}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Low-dose CT denoising: {escape(profile)}</title><style>{STYLE}</style></head>
<body><header><h1>Low-dose CT denoising</h1>
<p>Profile <b>{escape(profile)}</b> · {count}, {outcome} · {total:.0f} s ·
<a href="metrics.json">all metrics</a></p></header>
{sections}
</body></html>
"""


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metrics as ``{"a.b": value}``, numbers, strings and booleans only."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        elif isinstance(value, str | int | float | bool):
            flat[f"{prefix}{name}"] = value
    return flat


def number(value: Any) -> str:
    """Four significant digits for floats; everything else as it is."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4g}"


def _section(record: Mapping[str, Any]) -> str:
    name = escape(record["name"])
    metrics = flatten(record["metrics"])
    first = [(escape(key), escape(number(value))) for key, value in list(metrics.items())[:MAX_METRICS]]
    shown = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in first)
    more = len(metrics) - MAX_METRICS
    links = [f'<a href="{name}.html">read</a>'] if record.get("html") else []
    links.append(f'<a href="{name}.ipynb">notebook</a>')
    if metrics:
        links.append(f'<a href="{name}/metrics.json">metrics{f" ({more} more)" if more > 0 else ""}</a>')
    captions = record.get("captions") or [f"Figure {i + 1}" for i in range(len(record["figures"]))]
    figures = "".join(
        f'<a href="{escape(path)}"><img loading="lazy" src="{escape(path)}" alt="{escape(caption)}">'
        f"<small>{escape(caption)}</small></a>"
        for path, caption in zip(record["figures"], captions, strict=True)
    )
    error = f"<pre>{escape(record['error'])}</pre>" if record["error"] else ""
    return f"""<section id="{name}"><h2>{name[:2]} · {escape(record["title"])}</h2>
<p class="about"><span class="{escape(record["status"])}">{escape(record["status"])}</span>
 · {record["seconds"]:.0f} s · {" · ".join(links)}</p>
{error}{f"<dl>{shown}</dl>" if shown else ""}
<div class="figures">{figures}</div></section>"""
