"""A model's answers for a whole data set, on all ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from transformer.runtime.progress import Progress
from transformer.runtime.ranks import Runtime
from transformer.training.batches import collate, evaluation_batches
from transformer.training.packed import PackedDataset

# --------------------------------------------------------------------- running over a data set


def predict_logits(
    model: nn.Module,
    dataset: PackedDataset,
    batch_size: int,
    runtime: Runtime,
    *,
    part: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the logits of every row, (N, C) float32, in the rows' order and on every rank.

    A model that answers for each token gives one row a token, (sum of lengths, C).

    Each rank computes its share of length-sorted batches; no row is computed twice.

    Args:
        part: the first row and the one after the last; None: all.
    """
    was_training = model.training
    model.eval()
    start, stop = part or (0, len(dataset))
    per_token = model.per_token
    width = model.config.num_labels
    indices, parts = [np.zeros(0, np.int64)], [torch.zeros(0, width, device=runtime.device)]
    batches = evaluation_batches(
        dataset,
        batch_size,
        rank=runtime.rank,
        world_size=runtime.world_size,
        start=start,
        stop=stop,
    )
    with torch.inference_mode(), runtime.autocast():
        for chosen in batches:
            on_host = collate(dataset, chosen, pad_token_id=model.config.pad_token_id)
            batch = on_host.to(runtime.device)
            inputs = batch.input_ids, batch.token_type_ids, batch.attention_mask
            logits = model(*inputs, only_logits=True).logits.float()
            if per_token:  # (B, T, C) without the padding
                # subtle: looked up on the host, so that nothing waits for the device.
                places = on_host.attention_mask.flatten().nonzero()[:, 0]
                logits = logits.flatten(0, 1)[places.to(runtime.device, non_blocking=True)]
            indices.append(dataset.token_places(chosen) if per_token else chosen)
            parts.append(logits)
            if progress is not None:
                progress.update(len(chosen) * runtime.world_size)
    model.train(was_training)
    own = np.concatenate(indices), torch.cat(parts).cpu().numpy()
    first, last = dataset.offsets[[start, stop]] if per_token else (start, stop)
    logits = np.empty((last - first, width), np.float32)
    for places, values in runtime.gather_objects(own):
        logits[places - first] = values
    return logits
