# After train_moving_digits.sh and deepen_moving_digits.sh: judge the model, and put it where `python -m video generate` finds it.
set -e
export OMP_NUM_THREADS=1
.venv/bin/python -m examples.moving_digits evaluate --model runs/video/told/pipeline --guidance 2 \
    --roll_outs 100 --candidates 4 --output runs/video/evaluation.json
rm -rf video/shipped/moving-digits && mkdir -p video/shipped
cp -r runs/video/told/pipeline video/shipped/moving-digits
cp runs/video/evaluation.json video/shipped/moving-digits/
