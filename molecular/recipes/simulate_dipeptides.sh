# The data of the shipped transferable flow: a corpus of dipeptides, and references of held-out ones. Run again, it goes on.
# References are judged by their last 100 ps: until then, some of the ladders are still where they started.
set -e
export OMP_NUM_THREADS=1
RECIPES=molecular/recipes
SIMULATE=".venv/bin/python -m molecular simulate --num_temperatures 5 --highest_temperature 700 --save_ps 0.1
    --hot_ps 0 --hydrogen_mass 3 --timestep_ps 0.002 --seed 0"
$SIMULATE --sequences $RECIPES/dipeptides.txt --split $RECIPES/dipeptides_split.json --num_ladders 24 \
    --equilibration_ps 5 --picoseconds 8 --output runs/dipeptides/corpus
$SIMULATE --sequences $RECIPES/held_out_dipeptides.txt --split $RECIPES/held_out_split.json --num_ladders 48 \
    --equilibration_ps 6 --picoseconds 150 --compile true --output runs/dipeptides/references
