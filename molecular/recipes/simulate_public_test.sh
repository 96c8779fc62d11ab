# References of the public test sequences, to evaluate transferable flows by and never to train on, in
# runs/public_test/references, on one core: sh molecular/recipes/simulate_public_test.sh [LENGTH ...] (2 and 4 by default).
# Run again, it goes on; with more PICOSECONDS, what is there is simulated for longer. A dipeptide of 200 ps takes 10 to 20
# minutes of one core, a tetrapeptide about 45: some 30 hours for all. `benchmarks/transferable.py --public-test 2 4
# --references runs/public_test/references --start_ps 60` uses what is finished, without the first 60 ps, in which the
# share of phi > 0 still falls to what it stays at.
export OMP_NUM_THREADS=1
PYTHON=${PYTHON:-.venv/bin/python}
OUTPUT=${OUTPUT:-runs/public_test/references}
PICOSECONDS=${PICOSECONDS:-200}
HOT_PS=${HOT_PS:-40}
SAVE_PS=${SAVE_PS:-0.2}
RECIPES=$(dirname "$0")

for length in ${*:-2 4}; do
    temperatures=6
    if [ "$length" = 2 ]; then temperatures=5; fi
    for sequence in $($PYTHON -c "import json, sys
print(*(name for name in json.load(open(sys.argv[1]))['test'] if len(name) == $length))" "$RECIPES/public_sequences.json")
    do
        $PYTHON -m molecular simulate --peptide "$sequence" --output "$OUTPUT/$sequence" --picoseconds "$PICOSECONDS" \
            --hot_ps "$HOT_PS" --equilibration_ps 10 --num_temperatures "$temperatures" --highest_temperature 700 \
            --num_replica_groups 64 --save_ps "$SAVE_PS" --timestep_ps 0.002 --hydrogen_mass 3 --compile true --seed 0 ||
        echo "$sequence failed; going on with others." >&2
    done
done
