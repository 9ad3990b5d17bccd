"""Fit the polynomials of csrc/math.inc and print them as C arrays.

    pip install mpmath && python csrc/fit_coefficients.py

Every fit is a weighted least-squares fit at Chebyshev nodes, done with 60 digits: as good as a minimax fit to within a
few per cent of its error, and with no iteration to go wrong. The number behind each name is the worst weighted error
before the coefficients are rounded to the type.

    EXP   (e^r - 1 - r) / r^2        on |r| <= ln(2)/2, error relative to e^r
    EXP2  (2^r - 1) / r              on |r| <= 1/2, error relative to 2^r
    ERF   (erf(x)/x - 1) in x^2      on |x| <= ERF_SPLIT, error relative to erf(x)
    ERFC  ln(erfc(x)) + x^2          on ERF_SPLIT <= x <= ERF_MAX in t = (x - ERF_MID) / ERF_HALF,
                                     error absolute in erf(x): weighted with erfc(x)
"""

import mpmath as mp

mp.mp.dps = 60
SPLIT = mp.mpf("0.9375")
ERF_MAX = {"f32": mp.mpf(4), "bf16": mp.mpf(4), "f64": mp.mpf(6)}
DEGREES = {
    "f32": dict(EXP=4, EXP2=5, ERF=5, ERFC=6),
    "bf16": dict(EXP=4, EXP2=4, ERF=5, ERFC=6),  # EXP2 alone is another
    "f64": dict(EXP=9, EXP2=10, ERF=11, ERFC=19),
}


def fit(function, weight, low, high, degree, to_variable):
    """Coefficients, lowest first, of the polynomial in `to_variable(x)`, and its worst weighted error."""
    count = 6 * (degree + 2)
    nodes = [(low + high) / 2 + (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    rows = mp.matrix(count, degree + 1)
    right = mp.matrix(count, 1)
    for i, x in enumerate(nodes):
        t, w = to_variable(x), weight(x)
        right[i] = function(x) * w
        for j in range(degree + 1):
            rows[i, j] = t**j * w
    solution = mp.lu_solve(rows, right)  # least squares, as there are more rows than columns
    coefficients = [solution[j] for j in range(degree + 1)]
    error = max(abs(mp.polyval(coefficients[::-1], to_variable(x)) - function(x)) * weight(x) for x in nodes)
    return coefficients, error


def main():
    half_log2 = mp.log(2) / 2
    for suffix, degrees in DEGREES.items():
        top = ERF_MAX[suffix]
        middle, half = (SPLIT + top) / 2, (top - SPLIT) / 2
        tables = {
            "EXP": fit(
                lambda r: (mp.expm1(r) - r) / r**2 if r else mp.mpf(1) / 2,
                lambda r: r**2 / mp.exp(r),
                -half_log2,
                half_log2,
                degrees["EXP"],
                lambda r: r,
            ),
            "EXP2": fit(
                lambda r: (mp.mpf(2) ** r - 1) / r if r else mp.log(2),
                lambda r: abs(r) / mp.mpf(2) ** r,
                -mp.mpf(1) / 2,
                mp.mpf(1) / 2,
                degrees["EXP2"],
                lambda r: r,
            ),
            "ERF": fit(
                lambda x: mp.erf(x) / x - 1,
                lambda x: x / mp.erf(x),
                mp.mpf("1e-6"),
                SPLIT,
                degrees["ERF"],
                lambda x: x * x,
            ),
            "ERFC": fit(
                lambda x: mp.log(mp.erfc(x)) + x * x,
                mp.erfc,
                SPLIT,
                top,
                degrees["ERFC"],
                lambda x, middle=middle, half=half: (x - middle) / half,
            ),
        }
        mark = "" if suffix == "f64" else "f"
        for name, (coefficients, error) in tables.items():
            print(f"/* {name} {suffix}: worst weighted error {mp.nstr(error, 2)} */")
            print(", ".join(mp.nstr(c, 9 if mark else 18) + mark for c in coefficients))
        print(f"/* ERF_MID, ERF_HALF */ {middle}, {half}")


if __name__ == "__main__":
    main()
