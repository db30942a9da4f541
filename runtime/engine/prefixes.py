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

_Key = tuple[int, tuple[int, ...]]


class Prefixes:
    """Blocks of tokens, each behind another one or at the beginning.

    Args:
        chunk_tokens: of a block.
        most_bytes: of all blocks together, 0 to keep none; `None` for a share of the free memory.

    Attributes:
        bytes_in_use: of the blocks there are.

    Raises:
        ValueError: if `most_bytes` is no whole number of at least 0.
    """

    def __init__(self, chunk_tokens: int, most_bytes: int | None = None) -> None:
        if most_bytes is not None:
            most_bytes = whole_number("max_prefix_bytes", most_bytes, 0, none="a share of memory")
        self._chunk = chunk_tokens
        self._most_bytes = most_bytes
        self._numbers = itertools.count(1)
        # By the number of the block before, 0 at the beginning, and the tokens; longest unused first.
        self._blocks: OrderedDict[_Key, tuple[int, Any]] = OrderedDict()
        self.bytes_in_use = 0

    def extend(self, prompt: tuple[int, ...], cache: Any, row: int) -> int:
        """Copies blocks into a row that holds a prompt's beginning up to a border.

        One token at least is left to be read, for what comes after it.

        Returns:
            Tokens that were copied.
        """
        length = start = int(cache.lengths[row])
        if start % self._chunk or not self._blocks:
            return 0
        path = self._path(prompt, len(prompt) - 1)
        for key in path[start // self._chunk :]:
            cache.write_block(row, length, self._blocks[key][1])
            length += self._chunk
            cache.lengths[row] = length
        self._touch(path)
        return length - start

    def keep(self, prompt: tuple[int, ...], cache: Any, row: int) -> None:
        """Keeps the last block that a row holds of a prompt, if it ends at a border."""
        stop = int(cache.lengths[row])
        if not stop or stop % self._chunk or self._most() == 0:
            return
        path = self._path(prompt, stop)
        if len(path) != stop // self._chunk - 1:  # there already, or what is before it has been dropped
            return
        self._touch(path)
        size = cache.block_bytes(self._chunk)
        spare = None
        while self.bytes_in_use + size > self._most():
            if len(self._blocks) == len(path):  # it would take the place of what it stands behind
                return
            _, (_, spare) = self._blocks.popitem(last=False)
            self.bytes_in_use -= size
        before = self._blocks[path[-1]][0] if path else 0
        block = cache.read_block(row, stop - self._chunk, stop, spare)
        self._blocks[before, prompt[stop - self._chunk : stop]] = next(self._numbers), block
        self.bytes_in_use += size
        self._touch(path)

    def _touch(self, path: list[_Key]) -> None:
        """Makes blocks the last used ones, an earlier one before a later: it is dropped after that."""
        for key in reversed(path):
            self._blocks.move_to_end(key)

    def _path(self, prompt: tuple[int, ...], length: int) -> list[_Key]:
        """Keys of the blocks that there are of a prompt's first tokens."""
        found: list[_Key] = []
        number = 0
        for start in range(0, length - self._chunk + 1, self._chunk):
            key = number, prompt[start : start + self._chunk]
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
