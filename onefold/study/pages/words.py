"""Numbers as people read them."""

from collections.abc import Mapping
from typing import Any

LABELS = {
    "held_out": "held-out",
    "mfu": "MFU",
    "cpu": "CPU",
    "gpu": "GPU",
    "kv_heads": "KV heads",
    "vocab": "vocabulary",
    "tied": "head tied to embedding",
    "torch": "PyTorch",
    "split": "held out by",
    "bad": "left out as bad",
    "per_class": "of each class",
    "std": "standard deviation",
}


def short(value: float) -> str:
    """Three digits or so: 1.52, 0.0123, 480, 12.5k, 3.1M, 2e-4."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.2g}".replace("e-0", "e-")
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: float) -> str:
    """With separators: 2,134,272."""
    return f"{value:,.0f}"


def large(value: float) -> str:
    """For a sentence: 2.13 million."""
    for size, unit in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Of bytes, in powers of ten: 453 kB, 11.7 MB."""
    if abs(value) < 1000:
        return f"{value:.0f} bytes"
    for scale, unit in ((1e3, "kB"), (1e6, "MB"), (1e9, "GB")):
        if abs(value) < 999.5 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e12:.3g} TB"


def duration(seconds: float) -> str:
    """42 seconds, 5.0 minutes, 2.4 hours."""
    if seconds < 100:
        return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.1f} seconds"
    if seconds < 100 * 60:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def label(name: str) -> str:
    """A key as a heading: held_out → Held-out, bits_per_byte → Bits per byte."""
    text = LABELS.get(name, name.replace("_", " "))
    return text[:1].upper() + text[1:]


def show(name: str, value: Any) -> str:
    """A value as its key says it should be read: bytes as a size, seconds as a duration, shares as percent."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(str(key), item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ("; " if any(isinstance(item, Mapping) for item in value) else ", ").join(show(name, v) for v in value)
    if not isinstance(value, int | float):
        return str(value)
    if name in ("bytes", "memory", "peak_memory") or name.endswith("_bytes"):
        return size(value)
    if name == "seconds" or name.endswith("_seconds"):
        return duration(value)
    if name == "mfu" or name.endswith("share"):
        return f"{value:.0%}"
    if isinstance(value, int) or (value == int(value) and abs(value) >= 100):
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}"
