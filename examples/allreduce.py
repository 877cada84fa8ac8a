"""Full replicas on handwritten digits: workers reduce gradients among themselves.

paramserver run -w 3 examples/allreduce.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import paramserver as ps

EPOCHS = 12


def main() -> None:
    torch.manual_seed(0)
    images, digits = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 16
    y = torch.tensor(digits)
    test = torch.arange(len(y)) % 4 == 0

    with ps.connect() as client:
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = client.optimizer(model, torch.optim.Adam, lr=5e-3, consistency=ps.AllReduce())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        loader = client.loader(TensorDataset(x[~test], y[~test]), batch_size=16)
        for _ in client.epochs(EPOCHS, schedule):
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                client.log(loss=loss)
            schedule.step()

        # Every worker has the same model, to the bit.
        client.barrier("trained")
        total = torch.cat([p.detach().view(-1) for p in model.parameters()]).double().sum()
        spread = client.all_reduce(total, "max", "max") - client.all_reduce(total, "min", "min")
        if client.is_chief:
            with torch.no_grad():
                hits = (model(x[test]).argmax(1) == y[test]).float().mean()
            print(
                f"test accuracy {100 * hits:.1f} %, replicas differ by {float(spread)}", flush=True
            )


if __name__ == "__main__":
    main()
