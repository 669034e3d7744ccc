"""Read a column of distinct strings from a Parquet file, without a Parquet library.

The GloVe wheel of the quickstart keeps its 400,000 words in such a file, and a library for it would
be a larger download than the words. Read are files of one string column, without missing values,
compressed with Snappy or not; anything else raises ValueError. Format: parquet.apache.org.
"""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC = b"PAR1"
DATA_PAGE, DICTIONARY_PAGE = 0, 2  # PageType
PLAIN, RLE_DICTIONARIES = 0, (2, 8)  # Encoding


def read_words(path: Path) -> list[str]:
    """Return the strings of the file's only column, in their order.

    Raises:
        ValueError: the file is not of the kind described above, or its strings are not distinct.
    """
    content = path.read_bytes()
    if content[:4] != MAGIC or content[-4:] != MAGIC:
        raise ValueError(f"{path}: not a Parquet file")
    footer = len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]
    metadata, _ = read_thrift_struct(content, footer)
    column_count = len(metadata[2]) - 1  # the schema's first element is its root
    if column_count != 1:
        raise ValueError(f"{path}: {column_count} columns, expected one of strings")
    words: list[str] = []
    for row_group in metadata[4]:
        words += read_column(content, row_group[1][0][3])
    if len(words) != metadata[3] or len(set(words)) != len(words):
        raise ValueError(f"{path}: the column does not hold {metadata[3]} distinct strings")
    return words


def read_column(content: bytes, column: dict) -> list[str]:
    """Read the pages of one column chunk, described by its ColumnMetaData.

    A chunk starts with a dictionary page and goes on with plain pages when that gets too large.
    subtle: the dictionary lists strings in the order of their first use; as all are distinct, that
    is the order of the rows, and the pages which only hold numbers into it can be passed over.
    """
    if column[4] not in (0, 1):  # UNCOMPRESSED, SNAPPY
        raise ValueError(f"compression {column[4]} is not supported")
    position = column.get(11, column[9])  # the dictionary page, else the first data page
    end = position + column[7]
    words: list[str] = []
    while position < end:
        header, position = read_thrift_struct(content, position)
        page = content[position : position + header[3]]
        position += header[3]
        if column[4] == 1:
            page = snappy_decompress(page)
        if header[1] == DICTIONARY_PAGE:
            words += split_strings(page)
        elif header[1] != DATA_PAGE:
            raise ValueError(f"page type {header[1]} is not supported")
        elif header[5][2] == PLAIN:
            levels = 4 + struct.unpack_from("<I", page)[0]  # which rows are missing: none is
            words += split_strings(page[levels:])
        elif header[5][2] not in RLE_DICTIONARIES:
            raise ValueError(f"encoding {header[5][2]} is not supported")
    return words


def split_strings(page: bytes) -> list[str]:
    """Split PLAIN strings: each is its length in four bytes, then UTF-8."""
    words, position = [], 0
    while position < len(page):
        start = position + 4
        position = start + struct.unpack_from("<I", page, position)[0]
        words.append(page[start:position].decode("utf-8"))
    return words


def snappy_decompress(block: bytes) -> bytes:
    """Decompress one raw Snappy block.

    Example: b"\\x06\\x08abc\\x0a\\x03\\x00" is 6 bytes: "abc", then 3 bytes from 3 back: "abcabc".
    """
    size, position = read_varint(block, 0)
    output = bytearray()
    while position < len(block):
        tag = block[position]
        position += 1
        if tag & 3 == 0:  # literal bytes
            length = tag >> 2
            if length >= 60:
                width = length - 59
                length = int.from_bytes(block[position : position + width], "little")
                position += width
            output += block[position : position + length + 1]
            position += length + 1
            continue
        if tag & 3 == 1:  # a copy of 4 to 11 bytes
            length = 4 + (tag >> 2 & 7)
            offset = (tag >> 5) << 8 | block[position]
            position += 1
        else:  # a copy of 1 to 64 bytes, with an offset of two or four bytes
            length, width = 1 + (tag >> 2), 2 if tag & 3 == 2 else 4
            offset = int.from_bytes(block[position : position + width], "little")
            position += width
        start = len(output) - offset
        # subtle: a copy may run into the bytes that it makes, and then repeats them
        chunk = output[start : start + length]
        output += (chunk * (length // len(chunk) + 1))[:length]
    if len(output) != size:
        raise ValueError(f"a compressed page holds {len(output)} bytes instead of {size}")
    return bytes(output)


def read_varint(content: bytes, position: int) -> tuple[int, int]:
    """Read an unsigned integer of 7 bits a byte; return it and the position behind it."""
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7


def read_thrift_struct(content: bytes, position: int) -> tuple[dict, int]:
    """Read a struct in Thrift's compact protocol as {field id: value}, with the position behind."""
    fields: dict = {}
    field_id = 0
    while content[position]:
        head = content[position]
        position += 1
        if head >> 4:
            field_id += head >> 4
        else:
            raw, position = read_varint(content, position)
            field_id = raw >> 1 ^ -(raw & 1)
        fields[field_id], position = read_thrift_value(content, position, head & 15)
    return fields, position + 1


def read_thrift_value(content: bytes, position: int, kind: int) -> tuple[object, int]:
    """Read one value whose type code in the compact protocol is `kind`."""
    if kind in (1, 2):  # true, false: the code is the value
        return kind == 1, position
    if kind == 3:  # one byte
        return content[position], position + 1
    if kind in (4, 5, 6):  # integers, zigzag
        raw, position = read_varint(content, position)
        return raw >> 1 ^ -(raw & 1), position
    if kind == 7:  # a double
        return struct.unpack_from("<d", content, position)[0], position + 8
    if kind == 8:  # bytes
        size, position = read_varint(content, position)
        return content[position : position + size], position + size
    if kind in (9, 10):  # list, set
        size, item_kind = content[position] >> 4, content[position] & 15
        position += 1
        if size == 15:
            size, position = read_varint(content, position)
        items = []
        for _ in range(size):
            item, position = read_thrift_value(content, position, item_kind)
            items.append(item)
        return items, position
    if kind == 12:
        return read_thrift_struct(content, position)
    raise ValueError(f"Thrift type {kind} is not supported")
