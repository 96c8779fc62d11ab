# A corpus in equilibrium of uncapped peptides of 2, 3 and 4 residues, in runs/corpus/2, 3 and 4, on one core. Run again,
# it goes on; stopped at any time, what is finished is a corpus, with balanced residues. None of the benchmark's sequences.
# About 12 hours of one core for the 360 dipeptides, and 1 h for 15 of three or 10 of four residues.
# With more PICOSECONDS, once it has finished, each sequence is simulated for longer.
export OMP_NUM_THREADS=1
PYTHON=${PYTHON:-.venv/bin/python}
OUTPUT=${OUTPUT:-runs/corpus}
PICOSECONDS=${PICOSECONDS:-20}
RECIPES=$(dirname "$0")
mkdir -p "$OUTPUT"

# corpus RESIDUES TEMPERATURES NUMBER: the first so many sequences of this length.
corpus() {
    set -- "$1" "$2" "$3" "$OUTPUT/$1"
    mkdir -p "$4"
    grep -v '^#' "$RECIPES/corpus_sequences_$1.txt" | head -n "$3" > "$4/sequences.txt"
    $PYTHON -m molecular simulate --sequences "$4/sequences.txt" --output "$4" --picoseconds "$PICOSECONDS" \
        --hot_ps 40 --equilibration_ps 10 --num_temperatures "$2" --num_ladders 32 --save_ps 0.2 --timestep_ps 0.002 \
        --hydrogen_mass 3 --validation_fraction 0.05 --test_fraction 0 --compile true --seed 0 ||
    echo "Peptides of $1 residues failed; going on with others." >&2
}

# Dipeptides first, with some longer ones between them.
for round in 1 2 3 4 5 6 7 8 9; do
    corpus 2 5 $((40 * round))
    corpus 3 6 $((5 * round))
    corpus 4 6 $((5 * round))
done
for round in $(seq 1 48); do
    corpus 3 6 $((40 + 20 * round))
    corpus 4 6 $((40 + 20 * round))
done
