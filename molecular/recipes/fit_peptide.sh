# The shipped flow of peptides fitted to single ones, in runs/fitted/SEQUENCE, on one core:
# sh molecular/recipes/fit_peptide.sh SEQUENCE ...
# For each: 128 replica groups from tempered draws of the flow, 15 ps, and 15 minutes of training on their frames; half an hour of
# four residues. Run again, it goes on. `benchmarks/single_systems.py --models SEQUENCE=runs/fitted/SEQUENCE/flow/model`
# measures it. A flow fitted to a test sequence is of use for that molecule alone, and never the start of a transferable one.
export OMP_NUM_THREADS=1
PYTHON=${PYTHON:-.venv/bin/python}
OUTPUT=${OUTPUT:-runs/fitted}
FLOW=${FLOW:-molecular/shipped/peptides}
PICOSECONDS=${PICOSECONDS:-10}
SECONDS_OF_TRAINING=${SECONDS_OF_TRAINING:-900}

for sequence in "$@"; do
    $PYTHON -m molecular simulate --peptide "$sequence" --output "$OUTPUT/$sequence/simulation" --flow "$FLOW" \
        --flow_tempered true --picoseconds "$PICOSECONDS" --hot_ps 0 --equilibration_ps 5 --num_temperatures 5 \
        --highest_temperature 600 --num_replica_groups 128 --save_ps 0.1 --timestep_ps 0.002 --hydrogen_mass 3 --compile true --seed 0 &&
    $PYTHON -m molecular train --data "$OUTPUT/$sequence/simulation" --initial "$FLOW" --output "$OUTPUT/$sequence/flow" \
        --training.batch_size 64 --training.max_seconds "$SECONDS_OF_TRAINING" --training.learning_rate 0.001 \
        --training.optimizer muon --training.weight_decay 0.01 --training.ema_decay 0.995 --training.warmup_steps 50 \
        --training.precision bf16-mixed --training.seed 0 ||
    echo "$sequence failed; going on with others." >&2
done
