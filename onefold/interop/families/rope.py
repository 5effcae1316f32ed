"""Rotary positions in config.json: the older `rope_theta` + `rope_scaling`, and the newer `rope_parameters`."""

from typing import Any

from onefold.core.errors import UserError
from onefold.interop.families.family import Keys
from onefold.nn.position import LinearScaling, Llama3Scaling, RotaryConfig


def read_rope(
    keys: Keys,
    theta: str = "rope_theta",
    fraction: str = "partial_rotary_factor",
    default_fraction: float | None = None,
) -> RotaryConfig:
    """Rotary settings; `theta` and `fraction` are the names that the family used before `rope_parameters`.

    `default_fraction` None: the family always turns whole heads.
    """
    new, old = keys.get("rope_parameters") or {}, keys.get("rope_scaling") or {}
    given = {**old, **new}
    base = given.get("rope_theta", keys.get(theta, keys.get("rope_theta", 10000.0)))
    turned = given.get("partial_rotary_factor", keys.get(fraction, default_fraction or 1.0))
    if default_fraction is None and turned != 1:
        raise UserError(f"{keys.where}: {fraction}={turned} is not supported for this architecture")
    return RotaryConfig(theta=base, fraction=turned, scaling=_read_scaling(given, keys.where))


def _read_scaling(given: dict[str, Any], where: str) -> LinearScaling | Llama3Scaling | None:
    kind = given.get("rope_type", given.get("type", "default"))
    try:
        if kind == "default":
            return None
        if kind == "linear":
            return LinearScaling(factor=given["factor"])
        if kind == "llama3":
            return Llama3Scaling(
                factor=given["factor"],
                low=given["low_freq_factor"],
                high=given["high_freq_factor"],
                context=given["original_max_position_embeddings"],
            )
    except KeyError as missing:
        raise UserError(f"{where}: rope scaling {kind} lacks {missing}") from None
    raise UserError(f"{where}: rope scaling {kind!r} is not supported; supported are default, linear and llama3")


def write_rope(rotary: RotaryConfig) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`: the spelling that every reader, old and new, understands."""
    scaling = rotary.scaling
    if scaling is None:
        return {"rope_theta": rotary.theta, "rope_scaling": None}
    if isinstance(scaling, LinearScaling):
        return {"rope_theta": rotary.theta, "rope_scaling": {"rope_type": "linear", "factor": scaling.factor}}
    if not isinstance(scaling, Llama3Scaling):
        raise UserError(f"published formats have no name for {type(scaling).__name__}")
    return {
        "rope_theta": rotary.theta,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.context,
        },
    }
