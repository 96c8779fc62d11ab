# What the shipped model of moving digits begins with, from nothing; deepen_moving_digits.sh goes on from there.
# An autoencoder, then the flow on its latents: first on short clips,
# then on their first frames alone, which teach it most of what a digit looks like and cost the least, then on whole
# clips, on both at once, with a denoiser beside it, on other clips, from there on without training the denoiser, and
# in the end on clips that begin with a wrong digit (exposure bias), as those of a roll-out do. Run again, it goes on.
set -e
export OMP_NUM_THREADS=1
PYTHON=.venv/bin/python
LOOP="--training.checkpoint_seconds 300 --training.seed 0 --training.progress_bar false"
$PYTHON -m examples.moving_digits train_autoencoder --output runs/video/autoencoder --channels [8,24,48] --latent_channels 4 \
    --noise 0.15 --divergence_weight 1e-5 --training.batch_size 32 --training.max_seconds 720 \
    --training.max_steps 5000 --training.learning_rate 2e-3 --training.validation_interval 500 $LOOP
$PYTHON -m examples.moving_digits train --output runs/video/short --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --channels 128 --layers_per_block [1,1,1,4] --patch_size 2 --frames_shown 6 --clips 16000 \
    --training.batch_size 16 --training.max_seconds 3000 --training.learning_rate 1.5e-3 \
    --training.validation_interval 500 $LOOP
$PYTHON -m examples.moving_digits train --output runs/video/single --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/short/pipeline --frames_shown 1 --clips 40000 --training.batch_size 128 \
    --training.max_seconds 900 --training.learning_rate 1e-3 --training.validation_interval 250 $LOOP
$PYTHON -m examples.moving_digits train --output runs/video/long --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/single/pipeline --clips 8000 --training.batch_size 8 \
    --training.max_seconds 1800 --training.learning_rate 7e-4 --training.validation_interval 250 $LOOP
$PYTHON -m examples.moving_digits train --output runs/video/stills --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/long/pipeline --clips 4000 --stills 8 --training.batch_size 8 \
    --training.max_seconds 600 --training.learning_rate 5e-4 --training.validation_interval 100 $LOOP
$PYTHON -m examples.moving_digits train --output runs/video/flow --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/stills/pipeline --denoiser_layers 2 --clips 4000 --training.batch_size 8 \
    --training.max_seconds 360 --training.learning_rate 2e-4 --training.validation_interval 100 $LOOP
$PYTHON -m examples.moving_digits train --output runs/video/more --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/flow/pipeline --clips 8000 --stills 8 --training.batch_size 8 \
    --training.max_seconds 1500 --training.learning_rate 5e-4 --training.validation_interval 250 \
    --training.checkpoint_seconds 300 --training.seed 1 --training.progress_bar false
$PYTHON -m examples.moving_digits train --output runs/video/longer --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/more/pipeline --clips 8000 --stills 8 --learn_denoiser false \
    --training.batch_size 8 --training.max_seconds 4200 --training.learning_rate 7e-4 \
    --training.validation_interval 500 --training.checkpoint_seconds 300 --training.seed 2 --training.progress_bar false
$PYTHON -m examples.moving_digits train --output runs/video/steady --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/longer/pipeline --clips 8000 --stills 8 --cuts 0.5 --drifted 0.5 \
    --learn_denoiser false --training.batch_size 8 --training.max_seconds 3000 --training.learning_rate 7e-4 \
    --training.validation_interval 500 --training.checkpoint_seconds 300 --training.seed 3 --training.progress_bar false
$PYTHON -m examples.moving_digits train --output runs/video/steadier --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/steady/pipeline --clips 8000 --stills 8 --cuts 0.6 --drifted 0.8 \
    --learn_denoiser false --training.batch_size 8 --training.max_seconds 2100 --training.learning_rate 6e-4 \
    --training.validation_interval 500 --training.checkpoint_seconds 300 --training.seed 4 --training.progress_bar false
