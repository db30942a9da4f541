"""Beginnings of prompts that have been read, kept for the next prompt that begins so.

A prompt is read up to the same borders in any company, so the keys and values of the tokens between two
borders depend on the tokens up to there alone: a block of them is copied out when it has been read, and
into the row of a later prompt with the same tokens instead of reading them again, bit by bit the same.
After the prefix caching of vLLM (https://docs.vllm.ai/en/latest/design/prefix_caching.html), with
whole tokens as keys in place of hashes: no two prompts can be taken for each other.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

from runtime.numbers import whole_number
from runtime.system.available_memory import available_memory_bytes

FREE_SHARE = 0.1  # of the memory that is free when the first block is kept
MOST_DEFAULT_BYTES = 2 * 2**30
LEFT_TOKENS = 2  # of a prompt that are read in any case

_Key = tuple[int, tuple[int, ...]]
_NO_ROOM = object()


class Prefixes:
    """Blocks of tokens, each behind another one or at the beginning.

    Args:
        block_tokens: of a block.
        most_bytes: of all blocks together, 0 to keep none; `None` for a share of the free memory.

    Attributes:
        bytes_in_use: of the blocks there are.

    Raises:
        ValueError: if `most_bytes` is no whole number of at least 0.
    """

    def __init__(self, block_tokens: int, most_bytes: int | None = None) -> None:
        if most_bytes is not None:
            most_bytes = whole_number("max_prefix_bytes", most_bytes, 0, none="a share of memory")
        self._size = block_tokens
        self._most_bytes = most_bytes
        self._numbers = itertools.count(1)
        # By the number of the block before, 0 at the beginning, and the tokens; longest unused first.
        self._blocks: OrderedDict[_Key, tuple[int, Any]] = OrderedDict()
        self.bytes_in_use = 0

    def extend(self, prompt: tuple[int, ...], cache: Any, row: int, most: int | None = None) -> int:
        """Copies blocks into a row that holds a prompt's beginning up to a border.

        Two tokens at least are left to be read: the last one, for what comes after it, would not give
        the same bits alone.

        Args:
            prompt: token ids.
            cache: holds its beginning.
            row: of the cache.
            most: tokens of the prompt that may be taken; by default all but those two.

        Returns:
            Tokens that were copied.
        """
        length = start = int(cache.lengths[row])
        if start % self._size or not self._blocks:
            return 0
        limit = len(prompt) - LEFT_TOKENS
        path = self._path(prompt, limit if most is None else min(limit, most))
        for key in path[start // self._size :]:
            cache.write_block(row, length, self._blocks[key][1])
            length += self._size
            cache.lengths[row] = length
        self._touch(path)
        return length - start

    def keep(self, prompt: tuple[int, ...], cache: Any, row: int) -> None:
        """Keeps the whole blocks that a row holds of a prompt, as far as there is room."""
        count = int(cache.lengths[row]) // self._size
        if not count or self._most() == 0:
            return
        path = self._path(prompt, count * self._size)
        self._touch(path)
        for i in range(len(path), count):
            start, stop = i * self._size, (i + 1) * self._size
            spare = self._make_room(cache.block_bytes(self._size), len(path))
            if spare is _NO_ROOM:
                break
            key = self._blocks[path[-1]][0] if path else 0, prompt[start:stop]
            block = cache.read_block(row, start, stop, spare)
            self._blocks[key] = next(self._numbers), block
            path.append(key)
        self._touch(path)

    def _make_room(self, size: int, kept: int) -> Any:
        """Drops what was unused longest, but for the last used blocks; returns memory to use again."""
        spare = None
        while self.bytes_in_use + size > self._most():
            if len(self._blocks) <= kept:  # it would take the place of what it stands behind
                return _NO_ROOM
            _, (_, spare) = self._blocks.popitem(last=False)
            self.bytes_in_use -= size
        self.bytes_in_use += size
        return spare

    def _touch(self, path: list[_Key]) -> None:
        """Makes blocks the last used ones, an earlier one before a later: it is dropped after that."""
        for key in reversed(path):
            self._blocks.move_to_end(key)

    def _path(self, prompt: tuple[int, ...], length: int) -> list[_Key]:
        """Keys of the blocks that there are of a prompt's first tokens."""
        found: list[_Key] = []
        number = 0
        for start in range(0, length - self._size + 1, self._size):
            key = number, prompt[start : start + self._size]
            block = self._blocks.get(key)
            if block is None:
                break
            number = block[0]
            found.append(key)
        return found

    def _most(self) -> int:
        if self._most_bytes is None:
            free = available_memory_bytes()
            share = MOST_DEFAULT_BYTES if free is None else int(FREE_SHARE * free)
            self._most_bytes = min(share, MOST_DEFAULT_BYTES)
        return self._most_bytes
