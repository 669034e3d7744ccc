"""A real ALBERT with masked-LM head, of chemical reactions, fills in what was masked.

It is in the package rxnmapper, of which only the files are read; without it these tests are
skipped: pip install --no-deps rxnmapper==0.4.3
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from transformer.checkpoint import load_model
from transformer.modeling import BertForMaskedLM

NAME = "models/transformers/albert_heads_8_uspto_all_1310k"
# How the package's own tokenizer cuts the notation: atoms, bonds, rings.
SYMBOL = re.compile(r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|>>?|[0-9]")
# An ether from an alkyl halide, an ester, an amide, a saponification; chemistry as it is taught.
REACTIONS = (
    "CC(C)O.CCBr>>CCOC(C)C",
    "CC(=O)O.OCC>>CC(=O)OCC",
    "O=C(O)c1ccccc1.NCc1ccccc1>>O=C(NCc1ccccc1)c1ccccc1",
    "COC(=O)c1ccccc1.[Na+].[OH-]>>O=C(O)c1ccccc1",
)


@pytest.fixture(scope="module")
def directory() -> Path:
    spec = find_spec("rxnmapper")
    if spec is None:
        pytest.skip("rxnmapper is not installed")
    return Path(spec.submodule_search_locations[0]) / NAME


@torch.inference_mode()
def test_masked_symbols_of_a_reaction_are_found(directory: Path) -> None:
    model = load_model(BertForMaskedLM, directory, require=("encoder", "mlm"))[0].eval()
    words = (directory / "vocab.txt").read_text().split("\n")
    ids = {word: number for number, word in enumerate(words)}
    found = total = 0
    for reaction in REACTIONS:
        symbols = SYMBOL.findall(reaction)
        assert "".join(symbols) == reaction
        row = torch.tensor([ids[word] for word in ("[CLS]", *symbols, "[SEP]")])
        places = torch.arange(1, len(symbols) + 1)
        masked = row.repeat(len(symbols), 1)
        masked[places - 1, places] = ids["[MASK]"]
        logits = model(masked, tokens=places[:, None]).logits[:, 0]
        found += int((logits.argmax(1) == row[places]).sum())
        total += len(symbols)
    # The commonest symbol, an aromatic carbon, is less than a third of them.
    assert found > 0.8 * total
