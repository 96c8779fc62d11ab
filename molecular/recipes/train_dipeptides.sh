# The shipped flow of dipeptides, from the data of simulate_dipeptides.sh; then the table of held-out ones. Run again, it
# goes on. The last weights are kept: two validation sequences say little about all the others.
set -e
export OMP_NUM_THREADS=1
PYTHON=.venv/bin/python
$PYTHON -m molecular train --data runs/dipeptides/corpus --output runs/dipeptides/flow --coordinates internal \
    --channels 128 --num_blocks 2 --layers_per_block 3 --dropout 0.1 --neighbours false --training.batch_size 64 \
    --training.max_seconds 1200 --training.learning_rate 0.001 --training.weight_decay 0.01 --training.ema_decay 0.998 \
    --training.validation_interval 250 --training.checkpoint_seconds 300 --training.keep_best false
cp runs/dipeptides/flow/model/* molecular/shipped/dipeptides/
$PYTHON benchmarks/transferable.py --models dipeptides=molecular/shipped/dipeptides --threads 1 \
    --references runs/dipeptides/references --output runs/dipeptides/table
