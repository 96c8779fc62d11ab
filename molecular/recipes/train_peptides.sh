# The shipped flow of peptides of 2 to 4 residues, from the data of simulate_corpus.sh, on one core: likelihood by Muon, then
# with energies as labels; then the public test. Run again, it goes on; run again with more sequences, they join.
set -e
export OMP_NUM_THREADS=1
PYTHON=${PYTHON:-.venv/bin/python}
TRAIN="$PYTHON -m molecular train --data runs/corpus --coordinates internal --training.batch_size 64
    --training.weight_decay 0.01 --training.checkpoint_seconds 300 --training.seed 0"
$TRAIN --output runs/peptides/likelihood --channels 128 --num_blocks 1 --layers_per_block 6 --dropout 0.05 \
    --neighbours false --training.max_seconds 12000 --training.optimizer muon --training.learning_rate 0.003 \
    --training.ema_decay 0.998 --training.validation_interval 500
$TRAIN --output runs/peptides/refined --initial runs/peptides/likelihood/model --energy_weight 0.1 \
    --training.max_seconds 900 --training.learning_rate 0.0006 --training.ema_decay 0.995 \
    --training.validation_interval 250 --training.refresh_interval 250 --training.keep_best false
cp runs/peptides/refined/model/* molecular/shipped/peptides/
$PYTHON benchmarks/transferable.py --public-test 2 4 --models peptides=molecular/shipped/peptides --threads 1 \
    --output runs/public_test
