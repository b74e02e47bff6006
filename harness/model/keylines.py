"""This module finds the line on which each key of a TOML text stands, so that an error can name it."""

from __future__ import annotations

import string

Path = tuple[str | int, ...]

_BARE = set(string.ascii_letters + string.digits + "_-")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class _Scanner:
    """Passes once over a text that ``tomllib`` has accepted; it does not check anything itself."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {(): 1}
        self.counts: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip_blank(newlines=True):
            if self._peek("[["):
                self.at += 2
                line, path = self.line, self._resolve(self._key("]"), last=False)
                index = self.counts[path] = self.counts.get(path, -1) + 1
                self.lines.setdefault(path, line)
                table = (*path, index)
                self.lines[table] = line
                self._skip_line()
            elif self._peek("["):
                self.at += 1
                line = self.line
                table = self._resolve(self._key("]"), last=True)
                for end in range(1, len(table) + 1):
                    self.lines.setdefault(table[:end], line)
                self._skip_line()
            else:
                self._pair(table)
        return self.lines

    def _resolve(self, parts: list[str], *, last: bool) -> Path:
        """Puts the index of the newest element after every array of tables on the way."""
        path: Path = ()
        for position, part in enumerate(parts):
            path = (*path, part)
            if path in self.counts and (last or position < len(parts) - 1):
                path = (*path, self.counts[path])
        return path

    def _peek(self, what: str) -> bool:
        return self.text.startswith(what, self.at)

    def _skip_line(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def _skip_blank(self, *, newlines: bool) -> bool:
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "#":
                self._skip_line()
            elif char == "\n" and newlines:
                self.line += 1
                self.at += 1
            elif char in " \t\r":
                self.at += 1
            else:
                return True
        return False

    def _key(self, stop: str) -> list[str]:
        """Reads a dotted key up to ``stop``, which is consumed."""
        parts: list[str] = []
        while self._skip_blank(newlines=False):
            char = self.text[self.at]
            if char in "\"'":
                parts.append(self._string())
            elif char in _BARE:
                start = self.at
                while self.at < len(self.text) and self.text[self.at] in _BARE:
                    self.at += 1
                parts.append(self.text[start : self.at])
            else:
                self.at += 1
                if char == stop:
                    break
        return parts

    def _string(self) -> str:
        """Reads a string of any of the four kinds; escapes are undone as far as key names need."""
        quote = self.text[self.at]
        mark = quote * 3 if self._peek(quote * 3) else quote
        self.at += len(mark)
        out: list[str] = []
        while not self._peek(mark):
            char = self.text[self.at]
            if char == "\\" and quote == '"':
                self.at += 1
                char = _ESCAPES.get(self.text[self.at], self.text[self.at])
            if self.text[self.at] == "\n":
                self.line += 1
            out.append(char)
            self.at += 1
        self.at += len(mark)
        while len(mark) == 3 and self._peek(quote):  # up to two quotes may stand before the closing three
            self.at += 1
        return "".join(out)

    def _pair(self, table: Path) -> None:
        line = self.line
        path: Path = table
        for part in self._key("="):
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._skip_blank(newlines=False)
        self._value(path)

    def _value(self, path: Path) -> None:
        char = self.text[self.at]
        if char in "\"'":
            self._string()
        elif char in "[{":
            self.at += 1
            index = 0
            while self._skip_blank(newlines=True) and self.text[self.at] not in "]}":
                if self._peek(","):
                    self.at += 1
                elif char == "[":
                    self.lines[(*path, index)] = self.line
                    self._value((*path, index))
                    index += 1
                else:
                    self._pair(path)
            self.at += 1
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1


def key_lines(text: str) -> dict[Path, int]:
    """Returns the lines (from 1) of all keys and array elements of a TOML text that ``tomllib`` accepts; ``()`` is line
    1.
    """
    return _Scanner(text).scan()
