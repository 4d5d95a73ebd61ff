"""A tokenizer whose tokens are short strings, bytes of longer characters among them."""

PIECES = [b"a", b"b", b"ab", b"ba", b" ", b"END", b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80", b"EN"]


class Detokenizer:
    """Holds bytes back until they are whole characters, as a real one does."""

    def __init__(self):
        self._bytes = b""

    def push(self, token):
        self._bytes += PIECES[token]
        for held in range(min(3, len(self._bytes)) + 1):
            whole = self._bytes[: len(self._bytes) - held]
            try:
                text = whole.decode()
            except UnicodeDecodeError:
                continue
            self._bytes = self._bytes[len(whole) :]
            return text
        text, self._bytes = self._bytes.decode(errors="replace"), b""
        return text

    def flush(self):
        text, self._bytes = self._bytes.decode(errors="replace"), b""
        return text


class Tokenizer:
    """What the engine needs of one; token `eos` ends a sequence."""

    special_ids = frozenset()

    def __init__(self, eos=()):
        self.eos_ids = frozenset(eos)

    def token_bytes(self, count):
        return PIECES[:count]

    def encode(self, text, **_options):
        return [PIECES.index(letter.encode()) for letter in text if letter.encode() in PIECES]

    def detokenizer(self, **_options):
        return Detokenizer()
