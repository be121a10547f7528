#!/bin/sh
# Makes models/flickr8k_seedN.ranked.h5, and .onnx, from Flickr8k (python data/download.py), in about an hour:
#   sh models/make_captioner.sh [N]
# With N = 0 that is models/flickr8k_captioner.h5 and .onnx, but for differences between machines. The last step needs
# requirements-export.txt. A step that was stopped continues when the same command is given again, but for the last three,
# which take a minute or two.
set -e
seed=${1:-0}
cd "$(dirname "$0")/.."
run=models/flickr8k_seed$seed
encoder="--encoder efficientnet_lite2 --features grid --photo_size 224"

python data/mirror.py --dataset_dir data/flickr8k --output_dir data/flickr8k_mirrored
python preprocess.py $encoder --dataset_dir data/flickr8k --output_dir data/grid --min_word_count 5
python preprocess.py $encoder --dataset_dir data/flickr8k_mirrored --output_dir data/mirrored --min_word_count 10

# Each photo and its mirror image are seen four times; an epoch takes twelve minutes on one core.
python train.py --decoder updown --units 512 --epochs 4 --keep last --learning_rate 1e-3 --weight_decay 0.05 \
  --seed "$seed" --data_dir data/mirrored --model_path "$run.h5" --resume
python ensemble.py "$run.h5" --neighbours data/grid --model_path "$run.ranked.h5" --overwrite
python calibrate.py "$run.ranked.h5" --data_dir data/grid
python export.py --model_path "$run.ranked.h5" --overwrite
