# The shipped flow of peptides of 2 to 4 residues, from the data of simulate_corpus.sh, on one core, by Muon; then the public
# test. Run again, it goes on. Where there are more sequences since, another --output with --initial runs/peptides/model in
# place of the architecture trains further on all of them.
set -e
export OMP_NUM_THREADS=1
PYTHON=${PYTHON:-.venv/bin/python}
$PYTHON -m molecular train --data runs/corpus-frames --coordinates internal --output runs/peptides --channels 128 \
    --num_blocks 1 --layers_per_block 8 --neighbours false --training.batch_size 64 --training.max_seconds 20000 \
    --training.optimizer muon --training.learning_rate 0.003 --training.weight_decay 0.01 --training.ema_decay 0.998 \
    --training.validation_interval 500 --training.checkpoint_seconds 300 --training.seed 0
cp runs/peptides/model/* molecular/shipped/peptides/
$PYTHON benchmarks/transferable.py --public-test 2 4 --models peptides=molecular/shipped/peptides --threads 1 \
    --output runs/public_test
