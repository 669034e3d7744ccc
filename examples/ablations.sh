#!/usr/bin/env bash
# The ablations of the paper (arXiv 1909.10351, tables 2 to 4) on one task, each by its flags, and
# those of a student that is computed from its teacher.
#
#   TEACHER=teacher GENERAL=general_tinybert STUDENT_CONFIG=examples/student_configs/tinybert_4l_312d \
#       DATA_DIR=GLUE_DIR/CoLA TASK_NAME=CoLA OUTPUT_DIR=ablations bash examples/ablations.sh
#
#   ... bash examples/ablations.sh full no_attn          only these
#   FLAGS="--num_train_epochs 1 --seed 1 2 3" ...        flags for every run
#   DRY_RUN=1 ...                                        print the commands, run nothing
#
# TEACHER: fine-tuned on the task (task_distill.py --finetune). GENERAL: what general_distill.py made
# of STUDENT_CONFIG. DATA_DIR holds train_aug.tsv (data_augmentation.py). What is in OUTPUT_DIR already
# is not run again. Table 4 varies the mapping of task distillation alone: a GENERAL made with
# the same --layer_mapping would complete it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for name in TEACHER GENERAL STUDENT_CONFIG DATA_DIR TASK_NAME OUTPUT_DIR; do
    if [ -z "${!name:-}" ]; then
        printf '%s is not set; the first lines of %s say what it is\n' "$name" "$0" >&2
        exit 2
    fi
done
read -r -a flags <<<"${FLAGS:-}"
chosen=" $* "

# distil OUTPUT FLAG...: one run of task_distill.py, unless it is done already
distil() {
    local output=$1
    shift
    local command=("${PYTHON:-python}" "$here/task_distill.py" --task_name "$TASK_NAME"
        --data_dir "$DATA_DIR" --output_dir "$OUTPUT_DIR/$output" "${flags[@]}" "$@")
    if [ -n "${DRY_RUN:-}" ]; then
        printf '%q ' "${command[@]}"
        printf '\n'
    elif [ ! -f "$OUTPUT_DIR/$output/.done" ]; then
        "${command[@]}" --overwrite_output_dir
        touch "$OUTPUT_DIR/$output/.done"
    fi
}

is_chosen() {
    [ "$chosen" = "  " ] || [[ "$chosen" == *" $1 "* ]]
}

# both_stages NAME STUDENT "INTERMEDIATE FLAGS" "PREDICTION FLAGS"
both_stages() {
    is_chosen "$1" || return 0
    local layers prediction
    read -r -a layers <<<"$3"
    read -r -a prediction <<<"$4"
    distil "$1/intermediate" --teacher_model "$TEACHER" --student_model "$2" "${layers[@]}"
    distil "$1/tinybert" --pred_distill --teacher_model "$TEACHER" \
        --student_model "$OUTPUT_DIR/$1/intermediate" "${prediction[@]}"
}

aug=--aug_train
both_stages full "$GENERAL" "$aug" "$aug"

# Table 2: without general distillation, task distillation, data augmentation
both_stages no_gd "$STUDENT_CONFIG" "$aug" "$aug"
if is_chosen no_td; then
    distil no_td/tinybert --finetune --student_model "$GENERAL" $aug
fi
both_stages no_da "$GENERAL" "" ""

# Table 3: without a term of the objective. Without prediction distillation the student learns the
# gold labels of the original data.
both_stages no_embd "$GENERAL" "$aug --embedding_weight 0" "$aug"
both_stages no_attn "$GENERAL" "$aug --attention_weight 0" "$aug"
both_stages no_hidn "$GENERAL" "$aug --hidden_weight 0" "$aug"
both_stages no_trm "$GENERAL" "$aug --attention_weight 0 --hidden_weight 0" "$aug"
both_stages no_pred "$GENERAL" "$aug" "--hard_labels"

# Table 4: other layer mappings; "full" is the uniform one
both_stages top "$GENERAL" "$aug --layer_mapping top" "$aug"
both_stages bottom "$GENERAL" "$aug --layer_mapping bottom" "$aug"

# The short way of README.md: computed from the teacher, then its predictions; the same training from
# a random start; and the student as computed, which no step of a rate of 0 changes.
prediction_stage() {
    is_chosen "$1" || return 0
    distil "$1/tinybert" --pred_distill --teacher_model "$TEACHER" \
        --student_model "$STUDENT_CONFIG" "${@:2}"
}
prediction_stage closed_form --init_from_teacher uniform --learning_rate 1e-4 $aug
prediction_stage no_closed_form --learning_rate 1e-4 $aug
prediction_stage closed_form_only --init_from_teacher uniform --learning_rate 0 \
    --num_train_epochs 0.001

[ -n "${DRY_RUN:-}" ] || "${PYTHON:-python}" - "$OUTPUT_DIR" <<'PYTHON'
import json
import sys
from pathlib import Path

found = {
    path.parts[-3]: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(Path(sys.argv[1]).glob("*/tinybert/eval_results.json"))
}
others = ("seed", "global_step", "best_seed")
for name, results in found.items():
    cells = [
        f"{key} {value:.4f}"
        for key, value in results.items()
        if isinstance(value, float) and not key.startswith("teacher_") and key not in others
    ]
    print(f"{name:16}", "  ".join(cells))
PYTHON
