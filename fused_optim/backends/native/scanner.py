"""The words of TTIR: tokens, types and attributes."""

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
LARGEST = 1 << 16  # elements of a tensor


class Token(NamedTuple):
    """A piece of the text: its sort (a group of TOKEN), itself, and its line."""

    sort: str
    text: str
    line: int


class Scanner:
    """A place in the tokens of a module.

    Attributes:
        writer: who wrote the text, such as ``"triton 3.9.0"``, for messages.
    """

    def __init__(self, text: str, writer: str) -> None:
        self.writer = writer
        self.tokens = list(self._tokens(text))
        self.at = 0

    def _tokens(self, text: str) -> Iterator[Token]:
        """Return the tokens of the text without spaces; at the end an empty one."""
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
        """Return the error about ``what``, at the next token unless the line is given."""
        line = self.tokens[self.at].line if line is None else line
        known = "which the native backend does not know"
        return UnsupportedTTIR(f"{self.writer} writes {what}, {known} (line {line} of TTIR)")

    @property
    def sort(self) -> str:
        """The sort of the next token."""
        return self.tokens[self.at].sort

    def next(self, sort: str) -> str:
        """Read the next token, which must be of this sort."""
        token = self.tokens[self.at]
        if token.sort != sort:
            raise self.refusal(f"`{token.text}` in the place of a {sort}")
        self.at += 1
        return token.text

    def take(self, text: str) -> bool:
        """Read ``text`` if it is next; return whether it was."""
        found = self.tokens[self.at].text == text
        self.at += found
        return found

    def expect(self, *texts: str) -> None:
        """Read these tokens, which must be next."""
        for text in texts:
            if not self.take(text):
                raise self.refusal(f"`{self.tokens[self.at].text}` in the place of `{text}`")

    def whole(self) -> int:
        """Read a whole number."""
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
        found = self._element()._replace(shape=shape)
        self.expect(">")
        # Triton's tensors have powers of two as sizes
        fits = shape and all(size > 0 and size & (size - 1) == 0 for size in shape)
        if not fits or found.size > LARGEST:
            raise self.refusal(f"the type `{found}`")
        return found

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
        """Read types with commas between them, and past ``end``, if there is one."""
        found: list[Type] = []
        if end and self.take(end):
            return found
        found.append(self.type())
        while self.take(","):
            found.append(self.type())
        self.expect(*([end] if end else []))
        return found

    # ---- what an operation may have beside operands

    def attributes(self, owner: str, form: Form, end: str = "}") -> dict[str, int]:
        """Read the inside of braces: attributes that the operation may have, by name."""
        found: dict[str, int] = {}
        while not self.take(end):
            if found:
                self.expect(",")
            name = self.next("word")
            if name not in form.attributes:
                raise self.refusal(f"the attribute `{name}` of `{owner}`")
            found[name] = value = self._attribute()
            allowed = form.attributes[name]
            if allowed is not None and value not in allowed:
                raise self.refusal(f"the attribute `{name} = {value}` of `{owner}`")
        return found

    def _attribute(self) -> int:
        """Read the value of an attribute, a number; 1 for one that merely stands there."""
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
        """Read the words after the operands: those that are known here change nothing."""
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
