// nccl.h: a stand-in for NCCL, over MPI, in the emulator: so that common/cuda/nccl.cuh runs where there is no GPU. Only
// what that file uses. tests/test_comm.sh puts this folder before NCCL's own on the path.
#pragma once
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <string.h>

typedef struct { char internal[128]; } ncclUniqueId;
typedef struct ncclComm { int rank, size; }* ncclComm_t;
typedef enum { ncclSuccess = 0, ncclInvalidUsage = 5, ncclInProgress = 7 } ncclResult_t;
typedef enum { ncclInt8, ncclFloat, ncclDouble, ncclBfloat16 } ncclDataType_t;
typedef enum { ncclSum, ncclAvg } ncclRedOp_t;

static inline const char* ncclGetErrorString(ncclResult_t) { return "an error of the stand-in"; }
static inline const char* ncclGetLastError(ncclComm_t) { return "It is a stand-in"; }
static inline ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* state) {
    *state = ncclSuccess;
    return ncclSuccess;
}

static inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    for (int i = 0; i < 128; i++) id->internal[i] = (char)(3 * i + 1);
    return ncclSuccess;
}

// The unique id must have arrived.
static inline ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
    ncclUniqueId want;
    ncclGetUniqueId(&want);
    if (memcmp(&id, &want, sizeof id)) return ncclInvalidUsage;
    int provided, mpi_rank, mpi_size;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
    if (mpi_rank != rank || mpi_size != size) return ncclInvalidUsage;
    *comm = (ncclComm_t)malloc(sizeof **comm);
    (*comm)->rank = rank;
    (*comm)->size = size;
    return ncclSuccess;
}
static inline ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    free(comm);
    MPI_Finalize();
    return ncclSuccess;
}

// Device memory by way of the host's.
static inline void* stand_in_fetch(const void* device, size_t bytes) {
    void* host = malloc(bytes);
    cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost);
    return host;
}
static inline void stand_in_put(void* device, void* host, size_t bytes) {
    cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice);
    free(host);
}

// Sums as doubles; bf16 is rounded once.
static inline ncclResult_t ncclAllReduce(const void* in, void* out, size_t n, ncclDataType_t type, ncclRedOp_t op,
                                         ncclComm_t comm, cudaStream_t) {
    size_t bytes = n * (type == ncclDouble  ? sizeof(double)
                        : type == ncclFloat ? sizeof(float)
                                            : sizeof(__nv_bfloat16));
    void* host = stand_in_fetch(in, bytes);
    double* sum = (double*)malloc(n * sizeof(double));
    for (size_t i = 0; i < n; i++) {
        sum[i] = type == ncclDouble ? ((double*)host)[i] : type == ncclFloat ? ((float*)host)[i]
                                                         : (double)(float)((__nv_bfloat16*)host)[i];
    }
    MPI_Allreduce(MPI_IN_PLACE, sum, (int)n, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    for (size_t i = 0; i < n; i++) {
        double value = op == ncclAvg ? sum[i] / comm->size : sum[i];
        if (type == ncclDouble) ((double*)host)[i] = value;
        else if (type == ncclFloat) ((float*)host)[i] = (float)value;
        else ((__nv_bfloat16*)host)[i] = (__nv_bfloat16)(float)value;
    }
    free(sum);
    stand_in_put(out, host, bytes);
    return ncclSuccess;
}

// In place, and of floats, as it is called. Other parts than this rank's are left as the sum, which is not the mean.
static inline ncclResult_t ncclReduceScatter(const void* in, void* out, size_t n, ncclDataType_t type, ncclRedOp_t op,
                                             ncclComm_t comm, cudaStream_t stream) {
    if (type != ncclFloat || op != ncclAvg || out != (float*)in + n * comm->rank) return ncclInvalidUsage;
    ncclAllReduce(in, (void*)in, n * comm->size, type, ncclSum, comm, stream);
    float* host = (float*)stand_in_fetch(out, n * sizeof(float));
    for (size_t i = 0; i < n; i++) host[i] /= (float)comm->size;
    stand_in_put(out, host, n * sizeof(float));
    return ncclSuccess;
}

static inline ncclResult_t ncclAllGather(const void* in, void* out, size_t n, ncclDataType_t type, ncclComm_t comm,
                                         cudaStream_t) {
    if (type != ncclInt8 || in != (const char*)out + n * comm->rank) return ncclInvalidUsage;
    void* host = stand_in_fetch(out, n * comm->size);
    MPI_Allgather(MPI_IN_PLACE, (int)n, MPI_BYTE, host, (int)n, MPI_BYTE, MPI_COMM_WORLD);
    stand_in_put(out, host, n * comm->size);
    return ncclSuccess;
}

static inline ncclResult_t ncclBroadcast(const void* in, void* out, size_t n, ncclDataType_t type, int root, ncclComm_t,
                                         cudaStream_t) {
    if (type != ncclInt8 || in != out) return ncclInvalidUsage;
    void* host = stand_in_fetch(in, n);
    MPI_Bcast(host, (int)n, MPI_BYTE, root, MPI_COMM_WORLD);
    stand_in_put(out, host, n);
    return ncclSuccess;
}
