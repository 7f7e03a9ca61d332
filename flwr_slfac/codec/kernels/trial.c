/* Counts what a plan's trial would code. The reference is trial.py. */
#include "coding.h"

#include <math.h>

/* Inlined, `keys_of` would lose its vectors. */
#if defined(__GNUC__)
#define APART __attribute__((noinline))
#else
#define APART
#endif

/* See trial.py. */
enum { TRIAL_CLASSES = 60, TRIAL_KEYS = 64 };
static const float trial_shrink = 0.1f;

/* Keys of a piece of a row: a loop without branches, which compilers vectorize. */
FOR_AVX2_TOO APART static void
keys_of(const float *restrict row, int num, int32_t energy,
        const int16_t *restrict columns, float inverse, int32_t *restrict keys)
{
    /* Adding the second rounds as `rintf` does, below the first. */
    const float most = 4194304, rounder = 12582912;
    for (int i = 0; i < num; i++) {
        float scaled = row[i] * inverse, size = fabsf(scaled) - trial_shrink;
        int32_t c = (energy + columns[i]) >> 1, bits;
        c = c < 0 ? 0 : c;
        c = c < TRIAL_CLASSES ? c : TRIAL_CLASSES - 1;
        size = size < most ? size : most;
        size = size > 0.0f ? size : 0.0f;
        float level = size + rounder - rounder;
        memcpy(&bits, &level, 4);
        int32_t key = (bits >> 23) - 126;
        key = key > 0 ? key : 0;
        key = scaled < 0 ? -key : key;
        keys[i] = c * TRIAL_KEYS + TRIAL_KEYS / 2 + key;
    }
}

static void count_row(const float *row, Py_ssize_t num, int32_t energy,
                      const int16_t *columns, float inverse, int64_t *counts)
{
    int32_t keys[256];
    for (Py_ssize_t at = 0; at < num; at += 256) {
        int some = num - at < 256 ? (int)(num - at) : 256;
        keys_of(row + at, some, energy, columns + at, inverse, keys);
        for (int i = 0; i < some; i++)
            counts[keys[i]]++;
    }
}

PyDoc_STRVAR(count_doc,
"count_levels(matrix, first, last, rows, columns, offset, inverse, counts)\n\n"
"See trial.count_levels in the module beside this one.");

static PyObject *count_levels(PyObject *self, PyObject *args)
{
    PyObject *o[4];
    Py_ssize_t first, last, offset;
    double inverse;
    Buffer matrix, rows, columns, counts;
    (void)self;
    if (!PyArg_ParseTuple(args, "OnnOOndO", &o[0], &first, &last, &o[1], &o[2], &offset,
                          &inverse, &o[3]) ||
        as_buffer(o[0], &matrix, 0) || as_buffer(o[1], &rows, 0) ||
        as_buffer(o[2], &columns, 0) || as_buffer(o[3], &counts, 1))
        return NULL;
    Py_ssize_t num_rows = rows.size / 2, num = columns.size / 2;
    if (!holds(rows, num_rows, 2) || !holds(columns, num, 2) || matrix.size % 4 ||
        (uintptr_t)matrix.data % 4 || num_rows < 1 || num < 1 ||
        matrix.size / 4 / num != num_rows || matrix.size / 4 % num ||
        !holds(counts, TRIAL_CLASSES * TRIAL_KEYS, 8) || first < 0 || last > num ||
        first > last || offset < -20000 || offset > 20000)
        return refuse("the matrix of a trial does not fit its energies");
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < num_rows; i++)
        count_row((const float *)matrix.data + i * num + first, last - first,
                  ((const int16_t *)rows.data)[i] + (int32_t)offset,
                  (const int16_t *)columns.data + first, (float)inverse,
                  (int64_t *)counts.data);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyMethodDef trial_methods[] = {
    {"count_levels", count_levels, METH_VARARGS, count_doc},
    {NULL, NULL, 0, NULL},
};
