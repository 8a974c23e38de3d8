"""The scanner of TTIR: tokens, types and attributes."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from fused_optim.backends.native.forms import Form
from fused_optim.backends.native.tree import FLOATS, INTEGERS, POINTER, Type, UnsupportedTTIR

TOKEN = re.compile(
    r"""
    (?P<space>[ \t]+|//[^\n]*)
  | (?P<line>\n)
  | (?P<value>%[\w$.-]+(?:\#\d+)?)
  | (?P<symbol>@[\w$.-]+)
  | (?P<block>\^\w+)
  | (?P<string>"[^"\n]*")
  | (?P<tensor>tensor<(?:\d+x)*)
  | (?P<number>-?(?:0x[0-9A-Fa-f]+|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?))
  | (?P<word>!?[A-Za-z_][\w$.]*)
  | (?P<mark>->|[=,:(){}<>])
    """,
    re.VERBOSE | re.ASCII,
)
LARGEST = 1 << 16  # maximum number of elements of a tensor


class Token(NamedTuple):
    """A token: its sort (the name of a group of TOKEN), its text, and its line from 1."""

    sort: str
    text: str
    line: int


class Scanner:
    """A scanner with a position in the tokens of a module.

    Attributes:
        writer: program that wrote the text, such as ``"triton 3.9.0"``, for messages.
    """

    def __init__(self, text: str, writer: str) -> None:
        self.writer = writer
        self.tokens = list(self._tokens(text))
        self.at = 0

    def _tokens(self, text: str) -> Iterator[Token]:
        """Yield the tokens of the text without spaces, and an empty one at the end."""
        line, at = 1, 0
        while at < len(text):
            match = TOKEN.match(text, at)
            if match is None:
                raise self.refusal(f"`{text[at]}`", line)
            if match.lastgroup == "line":
                line += 1
            elif match.lastgroup != "space":
                yield Token(str(match.lastgroup), match.group(), line)
            at = match.end()
        yield Token("end", "", line)

    def refusal(self, what: str, line: int | None = None) -> UnsupportedTTIR:
        """Return an error about ``what``, by default at the line of the next token."""
        line = self.tokens[self.at].line if line is None else line
        known = "which the native backend does not know"
        return UnsupportedTTIR(f"{self.writer} writes {what}, {known} (line {line} of TTIR)")

    @property
    def sort(self) -> str:
        """Sort of the next token."""
        return self.tokens[self.at].sort

    def next(self, sort: str) -> str:
        """Read the next token; raise UnsupportedTTIR unless it has this sort."""
        token = self.tokens[self.at]
        if token.sort != sort:
            raise self.refusal(f"`{token.text}` in the place of a {sort}")
        self.at += 1
        return token.text

    def take(self, text: str) -> bool:
        """Read the next token if it is ``text``; return True if it is."""
        is_next = self.tokens[self.at].text == text
        self.at += is_next
        return is_next

    def expect(self, *texts: str) -> None:
        """Read these tokens; raise UnsupportedTTIR if the next ones differ."""
        for text in texts:
            if not self.take(text):
                raise self.refusal(f"`{self.tokens[self.at].text}` in the place of `{text}`")

    def whole(self) -> int:
        """Read an integer."""
        text = self.next("number")
        if not re.fullmatch(r"-?\d{1,20}", text):
            raise self.refusal(f"`{text}` in the place of a whole number")
        return int(text)

    # ---- types

    def type(self) -> Type:
        """Read a type."""
        if self.sort != "tensor":
            return self._element()
        sizes = self.next("tensor")[len("tensor<") :]
        shape = tuple(int(size) for size in sizes.split("x")[:-1])
        type_ = self._element()._replace(shape=shape)
        self.expect(">")
        # the sizes of Triton's tensors are powers of two
        fits = shape and all(size > 0 and size & (size - 1) == 0 for size in shape)
        if not fits or type_.size > LARGEST:
            raise self.refusal(f"the type `{type_}`")
        return type_

    def _element(self) -> Type:
        name = self.next("word")
        if name in INTEGERS or name in FLOATS:
            return Type(name)
        if name != "!tt.ptr":
            raise self.refusal(f"the type `{name}`")
        self.expect("<")
        pointee = self.next("word")
        if pointee not in INTEGERS | FLOATS or pointee == "i1":
            raise self.refusal(f"the type `!tt.ptr<{pointee}>`")
        self.expect(">")
        return Type(POINTER, None, pointee)

    def types(self, end: str) -> list[Type]:
        """Read types separated by commas, and the token ``end`` unless it is ""."""
        types: list[Type] = []
        if end and self.take(end):
            return types
        types.append(self.type())
        while self.take(","):
            types.append(self.type())
        self.expect(*([end] if end else []))
        return types

    # ---- attributes and keywords of operations

    def attributes(self, owner: str, form: Form, end: str = "}") -> dict[str, int]:
        """Read attributes up to ``end`` and return their values by name."""
        values: dict[str, int] = {}
        while not self.take(end):
            if values:
                self.expect(",")
            name = self.next("word")
            if name not in form.attributes:
                raise self.refusal(f"the attribute `{name}` of `{owner}`")
            values[name] = value = self._attribute()
            allowed = form.attributes[name]
            if allowed is not None and value not in allowed:
                raise self.refusal(f"the attribute `{name} = {value}` of `{owner}`")
        return values

    def _attribute(self) -> int:
        """Read the value of an attribute as a number; 1 for an attribute without a value."""
        if not self.take("="):
            return 1
        if self.take("true"):
            return 1
        if self.take("false"):
            return 0
        dense = self.take("dense")
        self.expect(*(["<"] if dense else []))
        value = self.whole()
        self.expect(*([">"] if dense else []), ":")
        self.type()
        return value

    def flags(self, owner: str, form: Form) -> None:
        """Read the keywords after the operands, none of which changes the result."""
        while self.sort == "word":
            name = self.next("word")
            if name not in form.flags:
                raise self.refusal(f"`{name}` of `{owner}`")
            if not form.flags[name]:
                continue
            is_list = self.take("<")
            self.expect(*([] if is_list else ["="]))
            self._flag(owner, name, form.flags[name])
            while is_list and not self.take(">"):
                self.expect(",")
                self._flag(owner, name, form.flags[name])

    def _flag(self, owner: str, name: str, allowed: frozenset[str]) -> None:
        value = self.next("word")
        if value not in allowed:
            raise self.refusal(f"`{name} {value}` of `{owner}`")
