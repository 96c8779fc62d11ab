# A corpus of uncapped peptides of 2, 3 and 4 residues, in runs/corpus, on one core; none of the benchmark's sequences. Run
# again, it goes on; stopped at any time, what is finished is a corpus, with balanced residues: of each length, the lists
# have every residue at every place about equally often from the start. About half a minute of a core for a dipeptide, and
# one for four residues: nine hours for all 360 dipeptides and 120 of three and 240 of four residues.
# With more PICOSECONDS, once it has finished, each sequence is simulated for longer.
# Then, in runs/corpus-frames, 3,000 frames of each from 200 replicas at the molecules' own temperature, which start from
# those of the corpus (8 s of a core for a dipeptide): a flow learns 600 frames by heart.
set -e
export OMP_NUM_THREADS=1
PYTHON=${PYTHON:-.venv/bin/python}
OUTPUT=${OUTPUT:-runs/corpus}
PICOSECONDS=${PICOSECONDS:-12}
RECIPES=$(dirname "$0")
mkdir -p "$OUTPUT"

# first RESIDUES NUMBER FROM: so many sequences of a length.
first() {
    grep -v '^#' "$RECIPES/corpus_sequences_$1.txt" | tail -n "+$3" | head -n "$2"
}

# Dipeptides, with two of four residues and one of three for each three of them.
for round in $(seq 0 119); do
    first 2 3 $((3 * round + 1))
    first 3 1 $((round + 1))
    first 4 2 $((2 * round + 1))
done > "$OUTPUT/sequences.txt"
$PYTHON -m molecular simulate --sequences "$OUTPUT/sequences.txt" --output "$OUTPUT" --picoseconds "$PICOSECONDS" \
    --hot_ps 20 --equilibration_ps 5 --num_temperatures 5 --highest_temperature 700 --num_replica_groups 10 --save_ps 0.2 \
    --timestep_ps 0.002 --hydrogen_mass 3 --validation_fraction 0.05 --test_fraction 0 --seed 0
$PYTHON -m molecular simulate --sequences "$OUTPUT/sequences.txt" --ensemble "$OUTPUT" --output "$OUTPUT-frames" \
    --picoseconds 3 --hot_ps 0 --equilibration_ps 0.4 --num_temperatures 1 --num_replica_groups 200 --save_ps 0.2 \
    --timestep_ps 0.002 --hydrogen_mass 3 --validation_fraction 0.05 --test_fraction 0 --seed 0
