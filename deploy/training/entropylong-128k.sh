#!/usr/bin/env bash
# Continued training at 131,072 tokens with the paper's hyperparameters (Jia et al., arXiv
# 2510.02330), by the trainer that its authors released: caskcsg/longcontext, folder
# EntropyLong/prolong, commit 88fbeb8. Run this script in that folder.
#
#   MODEL=/models/Meta-Llama-3-8B DATA=/exports/<id>/mds/train bash entropylong-128k.sh
#
# MODEL  folder of a Llama or Qwen2 model; the trainer looks for `llama` or `qwen` in its path.
# DATA   folder of one split and source of an export of format `mds`; its card has the paths. Several
#        are separated by spaces; those of a mixture have their proportion after @:
#        DATA="<id>/mds/train/constructed-web@0.6 <id>/mds/train/natural-web@0.4"
# GPUS   number of GPUs of this node (default 8).
#
# Without loss weights: docs/trainers.md says what the trainer makes of `position_weighted`.
set -euo pipefail

: "${MODEL:?name the folder of the model}" "${DATA:?name the folder of the MDS export}"
read -ra data <<< "$DATA"
gpus=${GPUS:-8}
output=${OUTPUT:-checkpoints/entropylong-128k}

length=131072
sequence_parallel=2  # GPUs that share one sample
sequences=64         # per step, each counted by both of its GPUs: 64 * 131,072 / 2 = 4M tokens
steps=1000           # 4B tokens

export LOGIT_BLOCK_SIZE=2048 FSDP_SHARDING_STRATEGY=1 FSDP_STATE_DICT_TYPE=FULL_STATE_DICT
export TOKENIZERS_PARALLELISM=true WANDB_MODE=${WANDB_MODE:-offline}

exec torchrun --standalone --nproc-per-node="$gpus" -m training.train_language_model \
  --do_train \
  --model_name_or_path "$MODEL" --tokenizer_name "$MODEL" \
  --tokenized_mds_train "${data[@]}" \
  --output_dir "$output" --run_name entropylong-128k \
  --config_overrides rope_theta=200000000 \
  --per_device_max_tokens "$length" --seq_parallel_size "$sequence_parallel" \
  --per_device_train_batch_size 1 \
  --gradient_accumulation_steps $((sequences / gpus)) \
  --max_steps "$steps" --save_steps 200 \
  --learning_rate 4e-5 --lr_scheduler_type cosine --min_lr_ratio 0 --warmup_ratio 0.2 \
  --optim adamw_torch --adam_beta1 0.9 --adam_beta2 0.95 --weight_decay 0.1 \
  --max_grad_norm 1.0 \
  --bf16 --gradient_checkpointing --fsdp auto_wrap \
  --remove_unused_columns false --ddp_find_unused_parameters false \
  --dataloader_num_workers 1 --logging_steps 1
