# The shipped flow of dipeptides, from the data of simulate_dipeptides.sh: likelihood, then likelihood with energies as
# labels; then the table of held-out ones. Run again, it goes on.
set -e
export OMP_NUM_THREADS=1
PYTHON=.venv/bin/python
LOOP="--training.batch_size 64 --training.weight_decay 0.01 --training.checkpoint_seconds 300 --training.keep_best false"
$PYTHON -m molecular train --data runs/dipeptides/corpus --output runs/dipeptides/likelihood --coordinates internal \
    --channels 128 --num_blocks 2 --layers_per_block 3 --dropout 0.05 --neighbours false --training.max_seconds 2500 \
    --training.learning_rate 0.001 --training.ema_decay 0.998 --training.validation_interval 500 $LOOP
$PYTHON -m molecular train --data runs/dipeptides/corpus --output runs/dipeptides/refined --coordinates internal \
    --initial runs/dipeptides/likelihood/model --energy_weight 0.1 --training.max_seconds 1200 \
    --training.learning_rate 0.0004 --training.ema_decay 0.995 --training.validation_interval 250 \
    --training.refresh_interval 250 $LOOP
cp runs/dipeptides/refined/model/* molecular/shipped/dipeptides/
$PYTHON benchmarks/transferable.py --models dipeptides=molecular/shipped/dipeptides --threads 1 \
    --references runs/dipeptides/references --start_time 50 --num_samples 10000 --smc_samples 4000 --smc_draws 10000 \
    --final_moves 200 --batch_size 200 --transport_points 2000 --output runs/dipeptides/table
