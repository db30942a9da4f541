"""JSON that has one meaning and holds only what JSON has, whoever wrote it."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse_json(text: str) -> Any:
    """The value of JSON text that has one meaning and holds only what JSON has.

    Raises:
        ValueError: if it is not JSON, gives a name twice, nests too deeply, or holds a number that is
            not finite or half a character.
    """
    try:
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:  # half a character cannot be printed
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character, a surrogate without its pair") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "set_int_max_str_digits" not in str(error):
            raise
        raise ValueError("it holds a whole number of thousands of digits") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it gives the name {twice[:200]!r} twice")
    return values


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse_number(digits)


def _refuse_number(number: str) -> NoReturn:
    raise ValueError(f"it holds the number {number[:200]}, which is not finite")


# One for all texts: making it takes longer than reading a short one.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_number, parse_float=_finite
)
