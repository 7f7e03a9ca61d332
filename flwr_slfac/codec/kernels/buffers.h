/* What every file of kernels begins with: the stable ABI, buffers, refusals. */
#ifndef SLFAC_BUFFERS_H
#define SLFAC_BUFFERS_H

#ifndef Py_GIL_DISABLED
#define Py_LIMITED_API 0x030A0000 /* one build for Python 3.10 and newer */
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

/* The stable ABI of Python 3.10 has these, not PyObject_GetBuffer; newer headers have
 * lost their declarations. Every caller holds its objects during the call. */
#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#endif
PyAPI_FUNC(int) PyObject_AsReadBuffer(PyObject *, const void **, Py_ssize_t *);
PyAPI_FUNC(int) PyObject_AsWriteBuffer(PyObject *, void **, Py_ssize_t *);

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "the kernels are for little-endian machines; the reference serves others"
#endif

/* A second build of a function for AVX2, taken where the processor has it. Neither
 * contracts products and sums, so both give the same bits. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) &&                  \
    !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define FOR_AVX2_TOO __attribute__((target_clones("avx2", "default")))
#else
#define FOR_AVX2_TOO
#endif

/* Of a number that is not zero. */
static inline int lowest_bit(uint64_t number)
{
#ifdef __GNUC__
    return __builtin_ctzll(number);
#else
    int found = 0;
    while (!(number >> found & 1))
        found++;
    return found;
#endif
}

typedef struct {
    uint8_t *data;
    Py_ssize_t size; /* bytes */
} Buffer;

static inline int as_buffer(PyObject *object, Buffer *buffer, int writable)
{
    if (writable)
        return PyObject_AsWriteBuffer(object, (void **)&buffer->data, &buffer->size);
    return PyObject_AsReadBuffer(object, (const void **)&buffer->data, &buffer->size);
}

static inline PyObject *refuse(const char *why)
{
    PyErr_SetString(PyExc_ValueError, why);
    return NULL;
}

/* Whether a buffer holds exactly `num` items of `size` bytes, aligned. */
static inline int holds(Buffer buffer, Py_ssize_t num, Py_ssize_t size)
{
    return num >= 0 && buffer.size / size == num && buffer.size % size == 0 &&
           (uintptr_t)buffer.data % (size_t)size == 0;
}

extern PyMethodDef fit_methods[];
extern PyMethodDef planes_methods[];
extern PyMethodDef spectra_methods[];
extern PyMethodDef trellis_methods[];
extern PyMethodDef trial_methods[];

#endif
