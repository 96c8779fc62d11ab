# The shipped model of digits from nothing, in minutes of one core: pictures, a flow of them, and how good it is.
set -e
export OMP_NUM_THREADS=1
PYTHON=.venv/bin/python
$PYTHON -m examples.digits write --output runs/digits/pictures
$PYTHON -m video train --model tarflow --data runs/digits/pictures/learn --size 8 --grey true --levels 17 --noise 0 \
    --patch_size [1,8] --channels 64 --head_dim 32 --layers_per_block [2,2] --conditional spline --gaussianize true \
    --dropout 0.4 --prompt_dropout 0.1 --samples 40 --output runs/digits/run --training.max_steps 1500 \
    --training.batch_size 64 --training.learning_rate 3e-3 --training.weight_decay 0.1 --training.gradient_clip 10 \
    --training.ema_decay 0.99 --training.validation_interval 50 --training.validation_batch_size 200 \
    --training.accelerator cpu --training.progress_bar false
rm -rf video/shipped/digits && cp -r runs/digits/run/pipeline video/shipped/digits
$PYTHON -m examples.digits evaluate --model digits --output video/shipped/digits/evaluation.json
