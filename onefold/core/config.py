"""Configuration: what a thing is, as a frozen, validated value that prints, round-trips and is edited by path.

A config class lies directly above the module that it configures and builds it. Alternatives are arms of a union tagged
by `kind`; a field that takes one is a `Slot`:

    class BlockConfig(Config):
        mixer: Annotated[AttentionConfig | S4Config, Slot()]

    block.but({"mixer.window": 4096})                # edits the variant that is there
    block.but({"mixer": {"kind": "s4", "n": 64}})    # picks another one
"""

import hashlib
import json
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError, core_schema

from onefold.core.errors import UserError


class Config(BaseModel):
    """Base of all configs: frozen, keyword-only, unknown keys refused with the nearest valid name."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for name in data:
                if name not in cls.model_fields:
                    raise PydanticCustomError("unknown", "{text}", {"text": unknown_name(name, cls.model_fields)})
        return data

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every setting included."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], trusted: bool = False) -> Self:
        """Validate plain values. `trusted` lets `kind: "module:Class"` import code: never for what came from a file."""
        try:
            return cls.model_validate(data, context={"trusted": trusted})
        except ValidationError as error:
            raise UserError(explain(error, data)) from None

    @classmethod
    def from_json(cls, text: str, source: str = "the configuration") -> Self:
        try:
            data = json.loads(text)
        except ValueError as error:
            raise UserError(f"{source} is not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise UserError(f"{source} must be a JSON object")
        return cls.from_dict(data)

    def but(self, changes: Mapping[str, Any], trusted: bool = True) -> Self:
        """The same config with some dotted paths changed.

        A mapping merges into the variant that is there, unless it names another `kind`, which replaces the variant.
        trusted: as in `from_dict`; False where the changes may have come from a file.
        """
        data = self.to_dict()
        # `kind`, then outer before inner: a variant must have been picked before anything is set on it.
        picked: set[int] = set()
        for path, value in sorted(changes.items(), key=lambda item: (not item[0].endswith("kind"), item[0].count("."))):
            _set(data, path, value, picked)
        return type(self).from_dict(data, trusted=trusted)

    def digest(self, exclude: tuple[str, ...] = ()) -> str:
        """A short hash of what this config says, leaving out the dotted paths in `exclude`."""
        data = self.to_dict()
        for path in exclude:
            *parents, name = path.split(".")
            place = data
            for parent in parents:
                place = place.get(parent) if isinstance(place, dict) else None
            if isinstance(place, dict):
                place.pop(name, None)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


class Slot:
    """Marks a field that takes one of several configs, told apart by `kind`; use as `Annotated[A | B, Slot()]`.

    A string picks a variant with its defaults. From Python and the command line a config class of the user's own fits
    too, as an object or as "module:Class"; a loaded file may not bring one, since importing it would run its code.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        arms = get_args(source) if get_origin(source) in (Union, UnionType) else (source,)
        by_kind = {arm.model_fields["kind"].default: arm for arm in arms}
        tagged = core_schema.tagged_union_schema({k: handler.generate_schema(a) for k, a in by_kind.items()}, "kind")

        def validate(value: Any, inner: core_schema.ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
            if isinstance(value, Config):
                if not isinstance(value, arms) and not hasattr(value, "build"):
                    names = ", ".join(arm.__name__ for arm in arms)
                    raise PydanticCustomError(
                        "slot", "{text}", {"text": f"{type(value).__name__} does not fit; takes {names}"}
                    )
                return value
            if isinstance(value, str):
                value = {"kind": value}
            if isinstance(value, Mapping):
                kind = value.get("kind", next(iter(by_kind)) if len(by_kind) == 1 else None)
                if isinstance(kind, str) and ":" in kind:
                    return _foreign(kind, value, bool((info.context or {}).get("trusted")))
                if kind not in by_kind:
                    text = f"kind must be one of {', '.join(by_kind)}" + (f", not {kind}" if kind is not None else "")
                    raise PydanticCustomError("kind", "{text}", {"text": text})
                value = {**value, "kind": kind}
            return inner(value)

        def serialize(value: Config) -> dict[str, Any]:
            data = value.to_dict()
            if not isinstance(value, arms):
                data["kind"] = f"{type(value).__module__}:{type(value).__qualname__}"
            return data

        return core_schema.with_info_wrap_validator_function(
            validate, tagged, serialization=core_schema.plain_serializer_function_ser_schema(serialize)
        )


def _foreign(kind: str, value: Mapping[str, Any], trusted: bool) -> Config:
    """A researcher's own config class, by import path."""
    if not trusted:
        raise PydanticCustomError(
            "foreign", "{text}", {"text": f"{kind} is code; give it on the command line or from Python"}
        )
    module, _, name = kind.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PydanticCustomError("foreign", "{text}", {"text": f"could not import {kind}: {error}"}) from None
    fields = {k: v for k, v in value.items() if k != "kind" or found.model_fields.get("kind") is None}
    fields.pop("kind", None)
    return found.model_validate(fields, context={"trusted": True})


def parse_override(text: str) -> tuple[str, Any]:
    """Split "path=value" from the command line; the value is JSON where it can be, else a string."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UserError(f"{text!r} is not a setting; write it as name=value, for example trainer.steps=100")
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value


def unknown_name(name: str, known) -> str:
    near = get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
    return f"no setting named {name}; {hint}"


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted path → (value in a, value in b) wherever two plain configs differ; None where one has no such path."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*a, *b}):
        left, right = a.get(name), b.get(name)
        if _rows(left) and _rows(right) and len(left) == len(right):
            # Row by row: what an older version did not know yet is None in a row too.
            left, right = ({str(i): row for i, row in enumerate(rows)} for rows in (left, right))
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found |= differences(left, right, f"{prefix}{name}.")
        elif left != right:
            found[f"{prefix}{name}"] = (left, right)
    return found


def _rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, Mapping) for row in value)


def explain(error: ValidationError, data: Any) -> str:
    """A validation error in a line for each of the first mistakes: where and what."""
    lines = []
    for mistake in error.errors()[:3]:
        place, names, tagged = data, [], False
        for part in mistake["loc"]:
            if isinstance(place, Mapping) and not tagged and place.get("kind", None if part in place else part) == part:
                tagged = True  # the tag of a union arm, not a name that the user wrote; a field may be called like it
                continue
            tagged = False
            names.append(str(part))
            try:
                place = place[part]
            except (KeyError, IndexError, TypeError):
                place = None
        given = f", not {mistake['input']!r}" if isinstance(mistake["input"], str | int | float | None) else ""
        message = mistake["msg"] + (
            given if mistake["type"] not in ("unknown", "kind", "foreign", "slot", "missing") else ""
        )
        lines.append(": ".join(filter(None, [".".join(names), message])))
    return "\n".join(lines)


def _set(data: Any, path: str, value: Any, picked: set[int]) -> None:
    """`picked`: ids of the variants chosen on the way, which do not show yet what they can be told."""
    *parents, last = path.split(".")
    place, trail = data, []
    for part in parents:
        trail.append(part)
        inside = _get(place, part, trail, picked)
        if inside is None:
            place[part] = inside = {}
            picked.add(id(inside))
        place = inside
    current = _get(place, last, [*trail, last], picked)
    index = int(last) if isinstance(place, list) else last
    if last == "kind" and place.get("kind") != value:
        place.clear()
        place["kind"] = value
        picked.add(id(place))
    else:
        place[index] = found = _merged(current, value)
        if isinstance(found, dict) and (not isinstance(current, dict) or found.get("kind") != current.get("kind")):
            picked.add(id(found))


def _get(place: Any, part: str, trail: list[str], picked: set[int]) -> Any:
    if isinstance(place, list):
        if not part.isdigit() or int(part) >= len(place):
            raise UserError(f"{'.'.join(trail)}: takes an index from 0 to {len(place) - 1}")
        return place[int(part)]
    if not isinstance(place, dict):
        raise UserError(f"{'.'.join(trail)}: {trail[-2] if len(trail) > 1 else 'it'} has no settings of its own")
    if place and id(place) not in picked and part not in place and part != "kind":  # empty: any name
        raise UserError(f"{'.'.join(trail)}: {unknown_name(part, place)}")
    return place.get(part)


def _merged(current: Any, change: Any) -> Any:
    if isinstance(change, Config):
        return change
    if isinstance(change, str) and isinstance(current, dict) and "kind" in current:
        change = {"kind": change}
    if not isinstance(current, dict) or not isinstance(change, Mapping):
        return change
    if "kind" in change and change["kind"] != current.get("kind"):
        return dict(change)
    return {**current, **{name: _merged(current.get(name), value) for name, value in change.items()}}
