"The sides that are compared: the authors' formula written plainly, and ours, in both precisions."
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cotmi.students.batches import LengthGroupedBatches, TwoTaskCollator
from cotmi.students.encoder_decoder import ENCODER_DECODER
from cotmi.students.t5_fast_path import T5_PACKED
from cotmi.training.fused_linear_loss import vocabulary_pass
from cotmi.training.losses import term_weights

ALPHA, BETA, CLIP = 0.5, 0.1, 1.0


class Side:
    "A student, its optimiser and its order of batches; `step` takes one optimiser step."
    option, name = "", "" # on the command line, in tables
    dtype = torch.float32 # of its matrix products

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer, tokens: list[dict], lengths: np.ndarray,
                 batch_size: int, seed: int = 0):
        self.model, self.optimiser, self.tokens, self.lengths = model, optimiser, tokens, lengths
        self.batch_size, self.seed = batch_size, seed
        self.collate = TwoTaskCollator(model.config.pad_token_id)

    def batches(self) -> Iterator[list[int]]:
        "Row numbers of one batch after another, without end; short batches are left out."
        raise NotImplementedError

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        "The loss of a collated batch."
        raise NotImplementedError

    def step(self, rows: list[int]) -> float:
        "One optimiser step on these rows; its loss."
        batch = self.collate([self.tokens[i] for i in rows])
        loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.item()


class Authors(Side):
    """The authors' step (Chen et al. 2024) on today's transformers: batches at random, padded to the longest; a forward
    pass a task with full logits and its cross-entropy; softmax of both, maximum over all positions, cross-entropy of
    the probabilities taken as logits. What their Trainer does around it is left out, on both sides."""
    option, name = "authors", "authors' formula"

    def batches(self) -> Iterator[list[int]]:
        random = np.random.default_rng(self.seed)
        while True:
            order = random.permutation(len(self.tokens))
            for at in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield order[at:at + self.batch_size].tolist()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        passes = [self.model(input_ids=batch[f"{task}_input_ids"], attention_mask=batch[f"{task}_attention_mask"],
                             labels=batch[f"{task}_labels"]) for task in ("predict", "explain")]
        z, v = (F.softmax(each.logits, dim=-1).max(dim=1).values for each in passes)
        mi = F.cross_entropy(v, z.detach())
        return ALPHA * passes[0].loss + (1 - ALPHA) * passes[1].loss + BETA * mi


class Ours(Side):
    "This package: length-grouped batches and the fused vocabulary pass."
    option, name = "cotmi", "cotmi"
    pool = "target"
    forward = staticmethod(T5_PACKED.forward_tasks)

    def batches(self) -> Iterator[list[int]]:
        sampler = LengthGroupedBatches(self.lengths, self.batch_size, self.seed)
        epoch = 0
        while True:
            sampler.set_epoch(epoch)
            yield from (rows for rows in sampler if len(rows) == self.batch_size)
            epoch += 1

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predict, explain = self.forward(self.model, batch, padded=self.pool == "all")
        terms = vocabulary_pass("fused", predict.hidden, predict.labels, explain.hidden, explain.labels,
                                *ENCODER_DECODER.head(self.model), pool=self.pool,
                                weights=term_weights(ALPHA, BETA))
        return terms.total


class AuthorsBfloat16(Authors):
    "The authors' step under autocast to bfloat16, as `bf16: true` of a Trainer has it."
    option, name = "authors-bf16", "authors' formula, bfloat16"
    dtype = torch.bfloat16

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            return super().loss(batch)


class OursBfloat16(Ours):
    "The same with matrix products in bfloat16, as `bf16: true` of a run has it."
    option, name = "cotmi-bf16", "cotmi, bfloat16"
    dtype = torch.bfloat16

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            return super().loss(batch)


class OursPaperCode(Ours):
    "The same with the published code's objective, which pools over padded positions."
    option, name = "cotmi-paper-code", "cotmi, paper-code"
    pool = "all"


class OursCompiled(Ours):
    "The same with the forward passes compiled, as `torch_compile: true` of a run has it."
    option, name = "cotmi-compiled", "cotmi, torch.compile"
    forward = staticmethod(torch.compile(T5_PACKED.forward_tasks, dynamic=True))


class OursPlainRoute(Ours):
    "The same with transformers' own forward passes: what a compiled student is to be held against."
    option, name = "cotmi-plain-route", "cotmi, transformers' forward"

    forward = staticmethod(ENCODER_DECODER.forward_tasks)


SIDES = {side.option: side for side in (Authors, AuthorsBfloat16, Ours, OursBfloat16, OursPaperCode, OursCompiled,
                                       OursPlainRoute)}
