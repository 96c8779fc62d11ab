# After train_moving_digits.sh, on two cores: the same model four layers deeper, trained on clips that it began itself, and
# then once more on clips that the deeper one began; then on clips that keep the first frame of a long motion, on short
# ones of them, in which coming back from another digit is most of the loss, on whole clips of all kinds, those that it
# began itself among them, then on clips that keep the first frame and go on as they are, without anything to come back
# from (the stages before teach it to jump where a window begins), on more of these, of which what is given has more noise,
# and in the end on more single frames beside them, by which candidates are chosen. Run again, it goes on.
set -e
export OMP_NUM_THREADS=1
PYTHON=.venv/bin/python
BOTH=".venv/bin/torchrun --nproc_per_node=2 -m"
UNUSED="--training.find_unused_parameters true"  # the denoiser, which does not learn
RECOVERY=runs/video/recovery
[ -f $RECOVERY/steadier.safetensors ] || $PYTHON -m examples.moving_digits recovery --model runs/video/steadier/pipeline \
    --output $RECOVERY/steadier.safetensors --clips 600 --windows 5 --guidance 2 --seed 1000
$BOTH examples.moving_digits train --output runs/video/deeper --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/steadier/pipeline --more_layers 4 --clips 8000 --stills 2 --cuts 0.5 \
    --drifted 0.3 --recovery [$RECOVERY/steadier.safetensors] --learn_denoiser false $UNUSED --training.batch_size 16 \
    --training.max_seconds 2900 --training.learning_rate 1.2e-3 --training.validation_interval 1000 \
    --training.checkpoint_seconds 600 --training.seed 5 --training.progress_bar false
[ -f $RECOVERY/deeper.safetensors ] || $PYTHON -m examples.moving_digits recovery --model runs/video/deeper/pipeline \
    --output $RECOVERY/deeper.safetensors --clips 500 --windows 5 --guidance 2 --seed 4000
$BOTH examples.moving_digits train --output runs/video/recovered --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/deeper/pipeline --clips 8000 --stills 2 --cuts 0.4 --drifted 0.2 \
    --recovery [$RECOVERY/steadier.safetensors,$RECOVERY/deeper.safetensors] --learn_denoiser false $UNUSED \
    --training.batch_size 16 --training.max_seconds 2900 --training.learning_rate 8e-4 \
    --training.validation_interval 1000 --training.checkpoint_seconds 600 --training.seed 6 \
    --training.progress_bar false
$BOTH examples.moving_digits train --output runs/video/anchored --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/recovered/pipeline --clips 10000 --stills 2 --cuts 0.75 --anchored 0.8 \
    --drifted 0.8 --learn_denoiser false $UNUSED --training.batch_size 16 --training.max_seconds 1000 \
    --training.learning_rate 8e-4 --training.validation_interval 1000 --training.checkpoint_seconds 300 \
    --training.seed 7 --training.progress_bar false
for seed in 31000 32000; do
    [ -f $RECOVERY/anchored-$seed.safetensors ] || $PYTHON -m examples.moving_digits recovery --model runs/video/anchored/pipeline \
        --output $RECOVERY/anchored-$seed.safetensors --clips 320 --windows 7 --guidance 2 --seed $seed
done
$BOTH examples.moving_digits train --output runs/video/back --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/anchored/pipeline --clips 20000 --frames_shown 6 --cuts 0.85 --anchored 1 \
    --drifted 0.8 --learn_denoiser false $UNUSED --training.batch_size 48 --training.max_seconds 1500 \
    --training.learning_rate 1e-3 --training.validation_interval 1000 --training.checkpoint_seconds 300 \
    --training.seed 9 --training.progress_bar false
$BOTH examples.moving_digits train --output runs/video/kept --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/back/pipeline --clips 6000 --stills 1 --cuts 0.6 --anchored 0.9 --drifted 0.5 \
    --recovery [$RECOVERY/anchored-31000.safetensors,$RECOVERY/anchored-32000.safetensors] --emphasis 3 \
    --learn_denoiser false $UNUSED --training.batch_size 16 --training.max_seconds 2700 \
    --training.learning_rate 8e-4 --training.validation_interval 1000 --training.checkpoint_seconds 400 \
    --training.seed 10 --training.progress_bar false
$BOTH examples.moving_digits train --output runs/video/calm --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/kept/pipeline --clips 7000 --stills 1 --cuts 0.65 --anchored 0.9 --emphasis 3 \
    --learn_denoiser false $UNUSED --training.batch_size 16 --training.max_seconds 1380 \
    --training.learning_rate 8e-4 --training.validation_interval 1000 --training.checkpoint_seconds 300 \
    --training.seed 11 --training.progress_bar false
$BOTH examples.moving_digits train --output runs/video/noised --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/calm/pipeline --clips 14000 --stills 1 --cuts 0.7 --anchored 0.9 --emphasis 3 \
    --context_noise 0.4 --learn_denoiser false $UNUSED --training.batch_size 16 --training.max_seconds 4200 \
    --training.learning_rate 8e-4 --training.validation_interval 1000 --training.checkpoint_seconds 240 \
    --training.seed 12 --training.progress_bar false
$BOTH examples.moving_digits train --output runs/video/told --autoencoder runs/video/autoencoder/autoencoder \
    --noise 0.15 --initial runs/video/noised/pipeline --clips 6000 --stills 6 --cuts 0.7 --anchored 0.9 --emphasis 3 \
    --context_noise 0.4 --learn_denoiser false $UNUSED --training.batch_size 16 --training.max_seconds 900 \
    --training.learning_rate 5e-4 --training.validation_interval 1000 --training.checkpoint_seconds 240 \
    --training.seed 13 --training.progress_bar false
