"""YAML as its version 1.2 has it, with the core schema: what a plain word means is what it looks like.

PyYAML reads version 1.1, where `010` is eight, `10:00` is six hundred and `no` is false. Here `010` is ten, and the
others are text. Beyond the standard, so that a file means one thing only: a key is text as it is written, a key comes
once, and there are no tags and no merge keys.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
# YAML 1.2.2, section 10.3.2.
_CORE = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), list("-+0123456789")),
    "float": (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
}
_SURROGATES = re.compile("[\ud800-\udfff]")
_BREAKS_OF_1_1 = re.compile("[\x85\u2028\u2029]")
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class CoreYamlError(ValueError):
    """Text that is no YAML, or means more than one thing.

    Args:
        words: what is wrong.
        line: of the text, from 1; None where it is not known.
    """

    def __init__(self, words: str, line: int | None) -> None:
        super().__init__(words if line is None else f"line {line}: {words}")
        self.words, self.line = words, line


def parse(content: str | bytes) -> Any:
    """The one document of a text; bytes are UTF-8, or UTF-16 with a byte order mark.

    Strings may hold lone surrogates, as `os.fsdecode` makes them of bytes that are not UTF-8.

    Raises:
        CoreYamlError: the text is no YAML, holds several documents, or gives a key twice.
    """
    text = content if isinstance(content, str) else _decoded(content)
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(part for part in (error.context, error.problem) if part)
        raise CoreYamlError(words, None if mark is None else mark.line + 1) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise CoreYamlError(f"{error.reason} ({_named(error.character)})", line) from error
    except RecursionError as error:
        raise CoreYamlError("it is nested too deeply", None) from error
    except (ValueError, OverflowError) as error:  # a number of thousands of digits, an escape above U+10FFFF
        raise CoreYamlError(str(error), None) from error


def written(values: Mapping[str, Any]) -> str:
    """Text in ASCII that `parse` reads back as the same values, and so do readers of version 1.1."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=sys.maxsize)
    return text


def _decoded(content: bytes) -> str:
    encoding = _MARKS.get(content[:2], "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        words = f"the byte {byte:#04x} is not UTF-8; in double quotes it is written \\udc{byte:02x}"
        raise CoreYamlError(words, line) from error


def _named(character: Any) -> str:
    return f"U+{ord(character):04X}" if isinstance(character, str) else f"U+{character:04X}"


def _joined(text: str) -> str:
    """JSON writes a character above U+FFFF as two surrogates; a lone one stays."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    """None of version 1.1."""

    def check_printable(self, data: Any) -> None:
        found = _BREAKS_OF_1_1.search(data)
        if found is not None:
            reason = "a line break of YAML 1.1 is not read; write it in double quotes as an escape"
            raise yaml.reader.ReaderError("text", found.start(), ord(found[0]), "unicode", reason)
        super().check_printable(_SURROGATES.sub("?", data))

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it untyped
        if getattr(event, "tag", None) is not None:
            words = f"the tag {event.tag} is not read; write text in quotes, and other values plainly"
            raise yaml.composer.ComposerError(None, None, words, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            key = _joined(key_node.value)
            if key in values:
                words = f"the key {key!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, words, key_node.start_mark)
            values[key] = self.construct_object(value_node, deep=True)
        return values


def _int(loader: Any, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    base = {"0o": 8, "0x": 16}.get(text[:2])
    return int(text, 10) if base is None else int(text[2:], base)


def _float(loader: Any, node: yaml.ScalarNode) -> float:
    text = str(node.value).lower()
    if text.endswith(".nan"):
        return math.nan
    return float(text.replace(".inf", "inf"))


_CONSTRUCTORS = {
    "null": lambda loader, node: None,
    "bool": lambda loader, node: node.value.lower() == "true",
    "int": _int,
    "float": _float,
    "str": lambda loader, node: _joined(node.value),
    "map": lambda loader, node: loader.construct_mapping(node),
}


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either version would not read as text."""

    def check_simple_key(self) -> bool:
        # A reader looks for the colon behind at most 1024 characters, and the emitter counts them before it escapes.
        text = getattr(self.event, "value", None) or ""
        return bool(super().check_simple_key()) and len(ascii(text)) < 1000

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _firsts) in _CORE.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _firsts)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _firsts)
for _name, _constructor in _CONSTRUCTORS.items():
    _Loader.add_constructor(_TAG + _name, _constructor)
