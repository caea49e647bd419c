"""Any function, on this machine or on a cluster: the Ray-like way.

Run it as it is for a cluster inside this program, or with RUSTRAY_ADDRESS=rustray://HOST:PORT.
"""

import rustray


@rustray.remote
def square(x: int) -> int:
    return x * x


@rustray.remote(num_cpus=1, max_retries=5, timeout_s=30)
def divide(a: float, b: float) -> float:
    return a / b


with rustray.init():
    refs = [square.remote(i) for i in range(10)]
    print(rustray.get(refs))

    ready, rest = rustray.wait([square.remote(i) for i in range(5)], num_returns=2)
    print(len(ready), "ready,", len(rest), "to come")

    print(rustray.get(square.options(priority=10).remote(12)))

    try:
        rustray.get(divide.remote(1, 0))
    except ZeroDivisionError as error:
        print("the task raised:", error)
