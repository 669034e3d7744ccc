"""One training of task distillation: what all its seeds share, and what each does by itself."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from typing import Any

import torch

from transformer.checkpoint.directory import Checkpoint
from transformer.distillation.closed_form import ClosedFormReport
from transformer.distillation.layers import DISTILLATION_FLAGS
from transformer.distillation.objectives import Objective, mean_loss
from transformer.distillation.start import START_FLAGS, begin_from_teacher, describe, text_of
from transformer.distillation.students import ready_to_train
from transformer.files import file_digest, read_json
from transformer.modeling import TinyBertForSequenceClassification
from transformer.runtime.fingerprint import Fingerprint
from transformer.runtime.ranks import Runtime
from transformer.tasks.classifiers import load_classifier
from transformer.tasks.metrics import Results, beats, chance_score
from transformer.tasks.options import (
    LEARNING_FLAGS,
    given_answers,
    learner,
    learns_task,
    stage_of,
    student_dropout,
)
from transformer.tasks.results import Answers, DevSet, evaluate_with_answers
from transformer.tasks.table import TASK_FLAGS, Task
from transformer.tokenization import BertTokenizer
from transformer.training.batches import BatchPlan
from transformer.training.options import TRAINING_FLAGS
from transformer.training.packed import PackedDataset
from transformer.training.state import RunState, training_fingerprint
from transformer.training.steps import RunPlan

logger = logging.getLogger(__name__)

# Of what a student is better than chance before training, it may lose this share at first.
DESTROYED_SHARE = 0.25


# Flags that decide the result of a training, beside the content of what is read.
DECISIVE = (
    *("finetune", "pred_distill", "joint", "aug_train", "max_seq_length", "seed"),
    *("temperature", "prediction_loss", "original_soft_ce"),
    *("hard_labels", "hard_label_weight", "hard_labels_on_augmented"),
    *LEARNING_FLAGS,
    *TASK_FLAGS,
    *START_FLAGS,
    *TRAINING_FLAGS,
    *DISTILLATION_FLAGS,
)


def metric_fields(results: Results) -> dict[str, float]:
    """Return results under their names in metrics.jsonl: "eval_" before each, once."""
    return {f"eval_{key.removeprefix('eval_')}": value for key, value in results.items()}


@dataclass
class Job:
    """What all seeds of a training share. `args` has every default filled in."""

    args: argparse.Namespace
    task: Task
    runtime: Runtime
    tokenizer: BertTokenizer
    student: Checkpoint
    student_changes: dict[str, Any]
    teacher: Checkpoint | None
    train_set: PackedDataset
    dev_sets: list[DevSet]
    objective: Objective
    teacher_results: Results

    @property
    def keeps_best(self) -> bool:
        """Whether the dev score chooses the model; layers alone have none."""
        return learns_task(self.args)

    @property
    def facts(self) -> dict[str, Any]:
        """Return what eval_results.json says beside the results."""
        teacher = {f"teacher_{key}": value for key, value in self.teacher_results.items()}
        return {"task": self.task.name, "stage": stage_of(self.args), **teacher}


@dataclass
class Run:
    """One seed of a job."""

    job: Job
    args: argparse.Namespace

    def __post_init__(self) -> None:
        self.runtime = self.job.runtime
        self.stage = stage_of(self.args)
        self.keeps_best = self.job.keeps_best

    def plan_steps(self) -> RunPlan:
        """Return the optimizer steps of the run."""
        global_batch_size = self.args.train_batch_size * self.runtime.world_size
        order = BatchPlan(self.job.train_set, global_batch_size, self.args.seed)
        return RunPlan([order], self.args.num_train_epochs)

    def what_decides(self, plan: RunPlan) -> Fingerprint:
        """Return the fingerprint of the training."""
        job, args = self.job, self.args
        kind = "probabilities" if args.teacher_probabilities else "logits"
        answers = [f"{kind} {file_digest(path)}" for path in given_answers(args)]
        return training_fingerprint(
            *(args, DECISIVE, plan, self.runtime),
            **({"teacher_answers": answers} if answers else {}),
            student=job.student.fingerprint,
            teacher=job.teacher and job.teacher.fingerprint,
            tokenizer=job.tokenizer.fingerprint,
            init_text=args.init_text and file_digest(args.init_text),
            dev_sets=[dev.dataset.meta["content"] for dev in job.dev_sets],
        )

    def stored_results(self) -> Results:
        """Return the results of a run that is finished, on every rank."""
        results = None
        if self.runtime.is_main:
            path = self.args.output_dir / "eval_results.json"
            stored = read_json(path)
            results = {
                key: float("nan") if value is None else value
                for key, value in stored.items()
                if key not in (*self.job.facts, "seed", "global_step")
            }
        return self.runtime.broadcast_object(results)

    def measure(self, state: RunState) -> tuple[Results, Answers | None]:
        """Return the task's metrics on all dev sets, and what they are computed from on the first.

        For layers, the loss on the first and no answers.
        """
        if self.keeps_best:
            return self.score(state)
        job, batch_size = self.job, self.args.eval_batch_size
        dataset = job.dev_sets[0].dataset
        return mean_loss(job.objective, state.student, dataset, batch_size, self.runtime), None

    def score(self, state: RunState) -> tuple[Results, Answers]:
        """Return the metrics on all dev sets, and what they are computed from on the first."""
        job, batch_size = self.job, self.args.eval_batch_size
        results, *answers = evaluate_with_answers(
            state.student, job.task, job.dev_sets, batch_size, self.runtime
        )
        # What ranks decide by must be the same on all, to the last digit.
        return self.runtime.broadcast_object(results), tuple(answers)

    def choose(self, state: RunState, results: Results, *, is_last: bool) -> bool:
        """Say whether the student as it is now becomes the result, and note it in `state`.

        The best dev score wins, of equal ones that with the lower loss; without any, or where none
        was a number, the last model does. --patience is over after so many that were no better.
        """
        metric = self.job.task.best_metric
        best = state.facts.get("results")
        keep = not self.keeps_best or beats(results, best, metric)
        state.since_best = 0 if keep else state.since_best + 1
        if self.args.patience is not None and state.since_best >= self.args.patience:
            state.stopped = True
            logger.info(
                "no better dev %s in %d evaluations: stopping at step %d, the best was step %d",
                *(metric, state.since_best, state.step, state.best_step),
            )
        if keep or (best is None and (is_last or state.stopped)):
            state.best_step = state.step
            state.best_score = results[metric] if self.keeps_best else None
            state.facts["results"] = results
            keep = True
        return keep

    def measure_start(self, state: RunState, report: ClosedFormReport) -> tuple[Results, Answers]:
        """Say what a student that begins from its teacher is worth before any training.

        Returns:
            the task's metrics on all dev sets, and what they are computed from on the first.
        """
        task = self.job.task
        metric = task.best_metric
        scores, answers = self.score(state)
        state.metrics.write(step=0, **report.fields, **metric_fields(scores))
        state.facts["start_score"] = scores[metric]
        state.facts["chance"] = chance_score(task, answers[1])
        state.facts["start"] = [f"dev {metric} before training {scores[metric]:.4f}"]
        if not self.keeps_best:
            loss = self.measure(state)[0]["eval_loss"]
            state.facts["start"].append(f"loss before training {loss:.4f}")
        logger.info("%s", "; ".join(state.facts["start"]))
        if report.explained:
            state.facts["start"].append(describe(report))
        return scores, answers

    def compare_with_start(self, state: RunState, results: Results) -> None:
        """Warn once, at the first evaluation, if training destroys what the student began with."""
        start = state.facts.get("start_score")
        if start is None or not self.keeps_best or state.facts.get("compared_with_start"):
            return
        state.facts["compared_with_start"] = True
        metric, chance = self.job.task.best_metric, state.facts["chance"]
        score = results[metric]
        if abs(start - chance) and (start - score) / (start - chance) > DESTROYED_SHARE:
            logger.warning(
                "WARNING: %s was %.4f before training and is %.4f at step %d: the training "
                "destroys what the student began with; lower --learning_rate (it is %g)",
                *(metric, start, score, state.step, self.args.learning_rate),
            )

    def load_student(
        self, *, is_new: bool
    ) -> tuple[TinyBertForSequenceClassification, ClosedFormReport | None]:
        """Return the student as it begins, on its device and in training.

        Args:
            is_new: no saved state follows, so that a student may begin from its teacher.

        Returns:
            also what it keeps of its teacher, None unless it begins from it.
        """
        job, args = self.job, self.args
        torch.manual_seed(args.seed)
        student = load_classifier(
            *(job.student, job.task, f"the {learner(args)}"),
            need_classifier=False,
            **job.student_changes,
        )
        report = None
        if args.init_from_teacher and is_new:
            # The objective's teacher may be held in half precision; what is taken over is not.
            teacher = load_classifier(job.teacher, job.task, "the teacher", need_classifier=True)
            batches = text_of(args, job.train_set, job.tokenizer)
            report = begin_from_teacher(
                student, teacher, args.init_from_teacher, batches, self.runtime
            )
        dropout = student_dropout(args)
        student = ready_to_train(student, job.objective, args, self.runtime, dropout=dropout)
        if not args.finetune:  # the authors' students drop out nothing before the classifier
            student.dropout.probability = 0.0
        return student, report
