"""Spoil a file: its bytes, its lines, the values in it, its tensors."""

from __future__ import annotations

import gzip
import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

# What trips readers: blanks, quotes, ends of lines, halves of characters, numbers beyond reason.
PIECES = (
    *(
        b"\0",
        b'"',
        b"'",
        b"\r",
        b"\t",
        b"\n",
        b"\n\n",
        b"\r\n",
        b",",
        b";",
        b"\\",
        b"{",
        b"}",
        b"[",
    ),
    *(b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xef\xbb\xbf", b"\\ud83d", "\u2028\u3000".encode()),
    *(b"\x1b[31m", b"\x1a", b"[SEP]", b"[PAD]", b"<doc id=1>", b"</doc>", b"nan", b"-", b"null"),
    *(b"1e999", b"-1", b"99999999999999999999", b"0" * 400, b"a" * 70_000, b"[" * 5000),
    *("電影".encode(), "\U0001f600".encode(), "e\u0301".encode(), "\u202e".encode()),
)

VALUES = (
    *(None, True, False, 0, -1, 1, 2, 10**9, 10**30, 1.5, -0.0, float("inf"), float("nan")),
    *("", "x", "-1", "nan", "a\tb", "a\nb", "\ud83d", "../../x", "/", "y" * 5000),
    *([], [0], ["a"], [[]], {}, {"a": 1}, {"": None}),
)


# Two members of one name are what is wanted.
warnings.filterwarnings("ignore", "Duplicate name", module="zipfile")


def spoil(file: Path, rng: random.Random) -> str:
    """Spoil a file in some way, and return how."""
    content = file.read_bytes()
    ways: list[Callable[[bytes, random.Random], bytes]] = [spoil_bytes, spoil_lines]
    by_name = {
        ".json": [spoil_json] * 4,
        ".jsonl": [spoil_json_line] * 4,
        ".safetensors": [spoil_safetensors] * 5,
        ".pt": [spoil_torch] * 5,
        ".bin": [spoil_torch] * 5,
        ".gz": [spoil_packed] * 2,
        ".zip": [spoil_zip] * 2,
    }
    ways += by_name.get(file.suffix, [])
    if file.name.startswith("epoch_") and "metrics" not in file.name:
        ways += [spoil_json_line] * 4
    way = rng.choice(ways)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        try:
            content = way(content, rng)
        except Exception:  # spoilt so far already that it cannot be taken apart
            content = spoil_bytes(content, rng)
    file.write_bytes(content)
    return way.__name__


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    place = rng.randint(0, len(content))
    end = min(len(content), place + rng.choice((1, 1, 4, 50, len(content))))
    way = rng.randrange(5)
    if way == 0:  # cut
        return content[:place]
    if way == 1:  # a hole
        return content[:place] + content[end:]
    if way == 2:  # other bytes
        return content[:place] + rng.randbytes(min(end - place, 64)) + content[end:]
    if way == 3:  # twice
        return content[:end] + content[place:]
    return content[:place] + rng.choice(PIECES) + content[place:]


def spoil_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    way = rng.randrange(5)
    if way == 0:
        del lines[number]
    elif way == 1:
        lines.insert(number, lines[rng.randrange(len(lines))])
    elif way == 2:
        rng.shuffle(lines)
    elif way == 3:
        lines[number] = rng.choice(PIECES)
    else:
        cells = lines[number].split(b"\t")
        cells[rng.randrange(len(cells))] = rng.choice(PIECES)
        lines[number] = b"\t".join(cells)
    return b"\n".join(lines)


def spoil_value(value: Any, rng: random.Random, values: tuple[Any, ...] = VALUES) -> Any:
    """Replace, add or remove something somewhere in nested dictionaries and lists."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.15:
            del value[key]
        else:
            value[key] = spoil_value(value[key], rng, values)
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((-value, value + 1, value * 2, value * 10**6, str(value), float(value)))
    return rng.choice(values)


def spoil_json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(spoil_value(json.loads(content), rng)).encode()


def spoil_json_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    number = rng.randrange(max(1, len(lines) - 1))
    lines[number] = spoil_json(lines[number], rng)
    return b"\n".join(lines)


def spoil_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    name = rng.choice(list(tensors))
    tensor = tensors.pop(name)
    replacements = (
        *(tensor.flatten(), tensor[:1], tensor[None], tensor.half(), tensor.double()),
        *(tensor.long(), tensor.bool(), tensor * float("nan"), tensor * 1e30, tensor[:0]),
        torch.cat([tensor, tensor]),
    )
    way = rng.randrange(4)
    if way:
        new_name = {1: name, 2: name + ".x", 3: "module." + name}[way]
        tensors[new_name] = rng.choice(replacements).contiguous().clone()
    return tensors


def spoil_safetensors(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return save_tensors(spoil_tensors(load_tensors(content), rng), metadata={"format": "pt"})
    size = int.from_bytes(content[:8], "little")
    header = spoil_json(content[8 : 8 + size], rng)
    if rng.random() < 0.2:
        size += rng.choice((-1, 1, 10**6, 2**62))
        return size.to_bytes(8, "little") + content[8:]
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def spoil_torch(content: bytes, rng: random.Random) -> bytes:
    values = torch.load(io.BytesIO(content), weights_only=True)
    odd = (torch.zeros(0), torch.zeros(3, 5), torch.tensor(float("nan")), torch.ones(2).long())
    values = spoil_value(values, rng, (*VALUES, *odd))
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def spoil_packed(content: bytes, rng: random.Random) -> bytes:
    return gzip.compress(spoil_bytes(gzip.decompress(content), rng))


def spoil_zip(content: bytes, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            inside = source.read(member)
            if rng.random() < 0.5:
                inside = spoil_bytes(inside, rng)
            name = rng.choice((member.filename, member.filename, "../x", "/x", "a\\b", "x" * 300))
            target.writestr(name, inside)
    return buffer.getvalue()
