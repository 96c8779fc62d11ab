# The shipped flow of Ace-A-Nme: a simulation, likelihood, then likelihood with energies as labels, the last of it on
# frames of which those of phi > 0 are seen five times as often. Run again, it goes on. On one core about 10 minutes of
# simulation and 25, 15 and 6 minutes of training.
set -e
export OMP_NUM_THREADS=1
PYTHON=${PYTHON:-.venv/bin/python}
$PYTHON -m molecular simulate --peptide Ace-A-Nme --output runs/Ace-A-Nme --picoseconds 320 --hot_ps 40 --equilibration_ps 10 \
    --num_temperatures 4 --num_ladders 64 --save_ps 0.1 --timestep_ps 0.002 --hydrogen_mass 3 --compile true
TRAIN="$PYTHON -m molecular train --data runs/Ace-A-Nme --training.ema_decay 0.998 --training.validation_interval 250"
$TRAIN --output runs/likelihood --channels 96 --layers_per_block 10 --num_bins 16 --training.learning_rate 0.001 \
    --training.max_steps 2400
$TRAIN --output runs/refined --initial runs/likelihood/model --energy_weight 0.3 --training.learning_rate 0.0007 \
    --training.max_steps 850 --training.refresh_interval 50
[ -d runs/enriched ] || $PYTHON molecular/recipes/enrich.py --data runs/Ace-A-Nme --basin "phi 1 > 0" --times 4 --output runs/enriched
$PYTHON -m molecular train --data runs/enriched --initial runs/refined/model --output runs/shipped --energy_weight 0.3 \
    --training.learning_rate 0.0005 --training.ema_decay 0.995 --training.max_steps 345 --training.refresh_interval 50 \
    --training.keep_best false
cp runs/shipped/model/config.json runs/shipped/model/model.safetensors molecular/shipped/Ace-A-Nme/
$PYTHON -c "from molecular.data.ensembles import save_reference as s; s('runs/Ace-A-Nme', 4000, 'molecular/shipped/Ace-A-Nme/reference.npz')"
