/* Energies of planes as a few numbers. The reference is fit.py, which says what for;
 * sums are in its order.
 */
#include "buffers.h"

#include <math.h>
#include <stdlib.h>

/* See fit.py. */
enum { SWEEPS = 3, LIMIT = 250 };
static const double tiny = 1e-300, least_energy = 1e-30, least_share = 1e-12;

static int64_t half_units_of(double energy)
{
    int exponent;
    double mantissa = frexp(energy > tiny ? energy : tiny, &exponent);
    int64_t units = 2 * exponent - 2 + (mantissa >= 0.5946035575013605) +
                    (mantissa >= 0.8408964152537145);
    return units < -LIMIT ? -LIMIT : (units > LIMIT ? LIMIT : units);
}

static double ratio(double above, double below)
{
    above = above > least_energy ? above : least_energy;
    return above / (below > least_energy ? below : least_energy);
}

/* Energies and their model, each over what both weigh. */
FOR_AVX2_TOO
static void weigh_row(const double *restrict energies, Py_ssize_t num, double a,
                      const double *restrict u, double floor, double *restrict above,
                      double *restrict below)
{
    for (Py_ssize_t k = 0; k < num; k++) {
        double model = a * u[k], weight = 1 / (model + floor);
        above[k] = energies[k] * weight;
        below[k] = model * weight;
    }
}

FOR_AVX2_TOO
static void add_row(const double *restrict row, Py_ssize_t num, double *restrict sums)
{
    for (Py_ssize_t k = 0; k < num; k++)
        sums[k] += row[k];
}

typedef struct {
    const double *energies;
    Py_ssize_t num_samples, num_channels;
    double num_positions, floor;
} Fit;

/* `room` is for all energies and four rows of channels. */
static void fit(const Fit *f, double *a, double *u, double *room)
{
    Py_ssize_t num = f->num_channels;
    double *each = room, *above = each + f->num_samples * num, *below = above + num,
           *all_above = below + num, *all_below = all_above + num;
    for (Py_ssize_t k = 0; k < num; k++)
        u[k] = 0;
    for (Py_ssize_t n = 0; n < f->num_samples; n++) {
        a[n] = 1;
        for (Py_ssize_t k = 0; k < num; k++) {
            each[n * num + k] = f->energies[n * num + k] / f->num_positions;
            u[k] += each[n * num + k];
        }
    }
    for (Py_ssize_t k = 0; k < num; k++)
        u[k] /= (double)f->num_samples;
    for (int sweep = 0; sweep < 2 * SWEEPS; sweep++) {
        int is_of_channels = sweep % 2;
        memset(all_above, 0, 2 * (size_t)num * sizeof *room);
        for (Py_ssize_t n = 0; n < f->num_samples; n++) {
            double sum_above = 0, sum_below = 0;
            weigh_row(each + n * num, num, a[n], u, f->floor, above, below);
            if (is_of_channels) {
                add_row(above, num, all_above);
                add_row(below, num, all_below);
                continue;
            }
            for (Py_ssize_t k = 0; k < num; k++) {
                sum_above += above[k];
                sum_below += below[k];
            }
            a[n] *= ratio(sum_above, sum_below);
        }
        for (Py_ssize_t k = 0; k < num && is_of_channels; k++)
            u[k] *= ratio(all_above[k], all_below[k]);
    }
}

/* Planes by half units, descending; those of equal ones in their order. */
static void sort_planes(const int64_t *samples, Py_ssize_t num_samples,
                        const int64_t *channels, Py_ssize_t num_channels, int64_t *order)
{
    Py_ssize_t starts[4 * LIMIT + 2] = {0};
    for (Py_ssize_t n = 0; n < num_samples; n++)
        for (Py_ssize_t k = 0; k < num_channels; k++)
            starts[2 * LIMIT - samples[n] - channels[k] + 1]++;
    for (int i = 0; i <= 4 * LIMIT; i++)
        starts[i + 1] += starts[i];
    for (Py_ssize_t n = 0; n < num_samples; n++)
        for (Py_ssize_t k = 0; k < num_channels; k++)
            order[starts[2 * LIMIT - samples[n] - channels[k]]++] = n * num_channels + k;
}

/* Sets the weights of planes in their order; their sum with energies. */
static double weigh_planes(const Fit *f, const double *a, const double *u,
                           const int64_t *order, float *weights)
{
    Py_ssize_t num = f->num_samples * f->num_channels;
    double most = 0, sum = 0, floor = f->floor;
    for (Py_ssize_t n = 0; n < f->num_samples; n++)
        for (Py_ssize_t k = 0; k < f->num_channels; k++)
            most = a[n] * u[k] > most ? a[n] * u[k] : most;
    floor = floor > least_share * most ? floor : least_share * most;
    floor = floor > least_energy ? floor : least_energy;
    for (Py_ssize_t i = 0; i < num; i++) {
        double energy = a[order[i] / f->num_channels] * u[order[i] % f->num_channels];
        double weight = 1 / (energy + floor);
        weights[i] = (float)weight;
        sum += energy * weight;
    }
    return sum;
}

PyDoc_STRVAR(fit_doc,
"fit_planes(energies, num_positions, floor, alike, a, u, samples, channels, order, "
"weights) -> float\n\n"
"See fit.fit_planes in the module beside this one.");

static PyObject *fit_planes(PyObject *self, PyObject *args)
{
    PyObject *o[7];
    Buffer b[7];
    Fit f;
    int alike;
    (void)self;
    if (!PyArg_ParseTuple(args, "OddpOOOOOO", &o[0], &f.num_positions, &f.floor, &alike,
                          &o[1], &o[2], &o[3], &o[4], &o[5], &o[6]))
        return NULL;
    for (int i = 0; i < 7; i++)
        if (as_buffer(o[i], b + i, i > 0))
            return NULL;
    Py_ssize_t num_samples = b[1].size / 8, num_channels = b[2].size / 8;
    if (num_samples < 1 || num_channels < 1 || b[0].size / 8 / num_samples != num_channels ||
        !holds(b[0], num_samples * num_channels, 8) || !holds(b[1], num_samples, 8) ||
        !holds(b[2], num_channels, 8) || !holds(b[3], num_samples, 8) ||
        !holds(b[4], num_channels, 8) || !holds(b[5], num_samples * num_channels, 8) ||
        !holds(b[6], num_samples * num_channels, 4))
        return refuse("energies and what is fitted to them do not go together");
    double *room = malloc((4 + (size_t)num_samples) * (size_t)num_channels * sizeof *room), sum;
    if (!room)
        return PyErr_NoMemory();
    f.energies = (double *)b[0].data;
    f.num_samples = num_samples;
    f.num_channels = num_channels;
    Py_BEGIN_ALLOW_THREADS
    double *a = (double *)b[1].data, *u = (double *)b[2].data;
    int64_t *samples = (int64_t *)b[3].data, *channels = (int64_t *)b[4].data;
    fit(&f, a, u, room);
    for (Py_ssize_t n = 0; n < num_samples; n++) {
        a[n] = alike ? 1 : a[n];
        samples[n] = half_units_of(a[n]);
    }
    for (Py_ssize_t k = 0; k < num_channels; k++)
        channels[k] = half_units_of(u[k]);
    sort_planes(samples, num_samples, channels, num_channels, (int64_t *)b[5].data);
    sum = weigh_planes(&f, a, u, (int64_t *)b[5].data, (float *)b[6].data);
    Py_END_ALLOW_THREADS
    free(room);
    return PyFloat_FromDouble(sum);
}

PyMethodDef fit_methods[] = {
    {"fit_planes", fit_planes, METH_VARARGS, fit_doc},
    {NULL, NULL, 0, NULL},
};
