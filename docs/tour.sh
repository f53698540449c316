#!/bin/sh
# The commands of docs/tour.md, in their order; a run that was stopped goes on where it was.
set -eu
cd "$(dirname "$0")/.."
python main.py --config=configs/digits.py --mode=train --workdir=runs/tour/discrete \
    --config.train.ema_decay=0.995 --config.train.test_every=500 --config.train.iterations=2000 \
    --config.train.sample_every=0 --config.network.pretrained=
python main.py --config=configs/digits_sde.py:vp --mode=train --workdir=runs/tour/vp \
    --config.train.ema_decay=0.995 --config.train.test_every=500 --config.train.iterations=2000 \
    --config.train.sample_every=0 --config.network.pretrained=
python main.py --config=configs/digits.py --mode=estimate --workdir=runs/tour/discrete
python main.py --config=configs/digits.py --mode=likelihood --workdir=runs/tour/discrete \
    --config.trajectory.steps=10 --config.rule.name=small --config.trajectory.name=even
python main.py --config=configs/digits.py --mode=likelihood --workdir=runs/tour/discrete \
    --config.trajectory.steps=10 --config.trajectory.name=even
python main.py --config=configs/digits.py --mode=likelihood --workdir=runs/tour/discrete \
    --config.trajectory.steps=10
python main.py --config=configs/digits.py --mode=sample --workdir=runs/tour/discrete
python main.py --config=configs/digits.py:sn --mode=train --workdir=runs/tour/discrete \
    --config.train.ema_decay=0.995 --config.train.test_every=500 --config.train.iterations=1500
python main.py --config=configs/digits.py:sn --mode=likelihood --workdir=runs/tour/discrete \
    --config.trajectory.steps=10
python main.py --config=configs/digits.py:sn --mode=sample --workdir=runs/tour/discrete
python main.py --config=configs/compare_digits.py:tour --mode=compare --workdir=runs/tour \
    --config.processes=2
