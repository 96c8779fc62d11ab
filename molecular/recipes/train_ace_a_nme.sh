# The shipped flow of Ace-A-Nme: a simulation, likelihood, then likelihood with energies as labels. Run again, it goes on.
# On one core about 15 minutes of simulation and, at full speed, 25 and 25 minutes of training.
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
cp runs/refined/model/config.json runs/refined/model/model.safetensors molecular/shipped/Ace-A-Nme/
$PYTHON -c "from molecular.data.ensembles import save_reference as s; s('runs/Ace-A-Nme', 4000, 'molecular/shipped/Ace-A-Nme/reference.npz')"
