# The shipped flow of Ace-A-Nme: a simulation, then likelihood by Muon on frames of which those of phi > 0, which are rare,
# are seen five times as often. Run again, it goes on. On one core about 10 minutes of simulation and 15 of training.
set -e
export OMP_NUM_THREADS=1
PYTHON=${PYTHON:-.venv/bin/python}
$PYTHON -m molecular simulate --peptide Ace-A-Nme --output runs/Ace-A-Nme --picoseconds 320 --hot_ps 40 --equilibration_ps 10 \
    --num_temperatures 4 --num_replica_groups 64 --save_ps 0.1 --timestep_ps 0.002 --hydrogen_mass 3 --compile true
[ -d runs/enriched ] || $PYTHON molecular/recipes/enrich.py --data runs/Ace-A-Nme --basin "phi 1 > 0" --times 4 --output runs/enriched
$PYTHON -m molecular train --data runs/enriched --output runs/shipped --channels 96 --layers_per_block 6 --num_bins 16 \
    --training.optimizer muon --training.batch_size 128 --training.max_steps 2800 --training.learning_rate 0.004 \
    --training.weight_decay 0.01 --training.ema_decay 0.995 --training.validation_interval 500
cp runs/shipped/model/config.json runs/shipped/model/model.safetensors molecular/shipped/Ace-A-Nme/
$PYTHON -c "from molecular.data.ensembles import save_reference as s; s('runs/Ace-A-Nme', 4000, 'molecular/shipped/Ace-A-Nme/reference.npz')"
