# The shipped flows of AAA, Ace-AAA-Nme and AAAAAA: a simulation each, then likelihood by Muon, for Ace-AAA-Nme in
# two cycles. Run again, it goes on. On one core, each takes one to three hours of simulation and 25 to 40 minutes
# of training.
set -e
export OMP_NUM_THREADS=1
PYTHON=${PYTHON:-.venv/bin/python}
OPTIONS="--training.optimizer muon --training.weight_decay 0.01 --training.ema_decay 0.995
    --training.validation_interval 500"

# flow PEPTIDE TEMPERATURES HOT_PS PICOSECONDS SECONDS
flow() {
    $PYTHON -m molecular simulate --peptide "$1" --output "runs/$1" --num_temperatures "$2" --hot_ps "$3" --picoseconds "$4" \
        --equilibration_ps 20 --num_replica_groups 64 --save_ps 0.1 --timestep_ps 0.002 --hydrogen_mass 3 --compile true
    $PYTHON -m molecular train --data "runs/$1" --output "runs/flows/$1" --channels 96 --layers_per_block 6 --num_bins 16 \
        --training.batch_size 128 --training.max_seconds "$5" --training.learning_rate 0.004 $OPTIONS
    ship "$1" "runs/flows/$1/model"
}

# ship PEPTIDE MODEL
ship() {
    mkdir -p "molecular/shipped/$1"
    cp "$2/config.json" "$2/model.safetensors" "molecular/shipped/$1/"
    $PYTHON -c "import sys; from molecular.data.ensembles import save_reference as s; s(f'runs/{sys.argv[1]}', 2000, f'molecular/shipped/{sys.argv[1]}/reference.npz')" "$1"
}

flow AAA 5 40 240 1500
flow Ace-AAA-Nme 6 40 160 1800
flow AAAAAA 7 60 160 2400
$PYTHON -m molecular train --data runs/Ace-AAA-Nme --initial runs/flows/Ace-AAA-Nme/model --output runs/flows/Ace-AAA-Nme-2 \
    --training.batch_size 256 --training.max_seconds 780 --training.learning_rate 0.0025 --training.seed 1 $OPTIONS
ship Ace-AAA-Nme runs/flows/Ace-AAA-Nme-2/model
