// `unmask` in CUDA C++: one block a request. unmask_rules.py has the rules, step_table.py the columns.
//
// Free of PyTorch: a C function takes pointers and a stream, so that one build fits every release.
// Compiled with -fmad=false, because scores are rounded operation by operation as the definition
// rounds them. With DYNIN_HOST the same code is a plain C++ program of one thread a block, which is
// how it is tested where there is no GPU.

#include <math.h>
#include <stdint.h>

#ifdef DYNIN_HOST
#define __device__
#define __forceinline__ inline
#define THREAD 0
#define THREADS 1
#define SYNC()
static inline int64_t to_whole(double x) { return llrint(x); }
static inline int64_t bits_of(double x) { int64_t b; __builtin_memcpy(&b, &x, 8); return b; }
static inline double real_of(int64_t b) { double x; __builtin_memcpy(&x, &b, 8); return x; }
#else
#include <cuda_runtime.h>
#define THREAD ((int)threadIdx.x)
#define THREADS ((int)blockDim.x)
#define SYNC() __syncthreads()
static __device__ __forceinline__ int64_t to_whole(double x) { return __double2ll_rn(x); }
static __device__ __forceinline__ int64_t bits_of(double x) { return __double_as_longlong(x); }
static __device__ __forceinline__ double real_of(int64_t b) { return __longlong_as_double(b); }
#endif

// unmask_cuda.py has the same; outside of the namespace, or the function below could not be linked to.
struct Arguments {
    void* ids;
    uint8_t* state;
    const int64_t* table;
    const int64_t* request;
    const int64_t* slot;
    const int64_t* token;
    const double* score;
    const double* confidence;
    const double* entropy;
    int64_t* next_request;  // null: nobody reads what follows
    int64_t* next_slot;
    int32_t* counts;  // [5, B]: rows, masked, decided, revoked, committed
    int64_t num_slots, num_rows, num_next, width, num_requests, ids_are_64;
};

namespace {

constexpr int64_t kOne = int64_t(1) << 40;
constexpr int kWidth = 32;
constexpr uint8_t kMasked = 1, kDecided = 2;
constexpr int kRandom = 1;
constexpr int kRemask = 1, kThreshold = 2, kFactor = 3, kFrechet = 4, kEntropy = 5;
constexpr int64_t kRankingPlace = int64_t(1) << 28;
constexpr int64_t kLeast = INT64_MIN;

enum Column {
    kCanvas = 0, kSeed = 1, kStep = 2, kPlace = 3, kStart = 6, kStop = 7, kRule = 8, kRanking = 9,
    kCount = 10, kMin = 11, kMax = 12, kRevokeMax = 13, kMaskId = 14, kFirstRow = 15, kNumRows = 16,
    kNextStart = 17, kNextStop = 18, kCommittedOpen = 19, kCommittedDone = 20, kNoiseScale = 26,
    kParameter = 27, kRevokeBelow = 28,
};

// What the threads of a block add up or compare, and where it is kept.
struct Shared {
    int64_t* key;    // [W]
    int64_t* ticks;  // [W]
    int32_t* rank;   // [W]
    int32_t* row;    // [W]
    unsigned long long* cell;  // [8]
};

__device__ __forceinline__ void add(unsigned long long* cell, int64_t value) {
#ifdef DYNIN_HOST
    *cell += value;
#else
    if (value) atomicAdd(cell, (unsigned long long)value);
#endif
}

__device__ __forceinline__ void raise(unsigned long long* cell, int64_t value) {
#ifdef DYNIN_HOST
    if ((unsigned long long)value > *cell) *cell = value;
#else
    atomicMax(cell, (unsigned long long)value);
#endif
}

__device__ __forceinline__ uint32_t philox(uint32_t slot, int64_t seed, uint32_t step, uint32_t place) {
    uint32_t c0 = 0, c1 = slot, c2 = step, c3 = place;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

__device__ __forceinline__ float log_of(float x) { return (float)log((double)x); }

// ln(confidence) + scale * Gumbel noise, in float32.
__device__ __forceinline__ double noisy(double confidence, float scale, double uniform) {
    const float least = 1e-20f;
    const float c = (float)confidence;
    const float score = log_of(c > least ? c : least);
    const float u = (float)(floor(uniform * 16777216.0) / 16777216.0);
    const float e = -log_of(u > least ? u : least);
    const float gumbel = -log_of(e > least ? e : least);
    const float noise = scale * gumbel;
    return (double)(score + noise);
}

// A float64 as an int64 that is ordered as the numbers are.
__device__ __forceinline__ int64_t ordered(double x) {
    const int64_t bits = bits_of(x + 0.0);
    return bits >= 0 ? bits : bits ^ INT64_MAX;
}

__device__ __forceinline__ int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ __forceinline__ int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

__device__ __forceinline__ void write_id(const Arguments& a, int64_t at, int64_t value) {
    if (a.ids_are_64) {
        ((int64_t*)a.ids)[at] = value;
    } else {
        ((int32_t*)a.ids)[at] = (int32_t)value;
    }
}

// The rows that speak of this request's window.
__device__ void find_rows(const Arguments& a, int64_t b, int64_t start, const Shared& s) {
    for (int64_t w = THREAD; w < a.width; w += THREADS) s.row[w] = -1;
    SYNC();
    for (int64_t r = THREAD; r < a.num_rows; r += THREADS) {
        const int64_t offset = a.slot[r] - start;
        if (a.request[r] == b && offset >= 0 && offset < a.width) s.row[offset] = (int32_t)r;
    }
    SYNC();
}

// How many of the open slots the rule decides; cells 1 and 2 are sums of all threads.
__device__ int64_t num_kept(const int64_t* numbers, int64_t num_open, int64_t found, int64_t largest) {
    const int64_t rule = numbers[kRule];
    int64_t kept = numbers[kCount];
    if (rule == kRemask) kept = num_open - kept;
    if (rule == kThreshold) kept = found;
    if (rule >= kFactor) kept = largest;
    kept = least_of(least_of(most_of(kept, numbers[kMin]), numbers[kMax]), num_open);
    return most_of(kept, 0);
}

// Open slots of the window behind this step, ascending.
__device__ void follow(const Arguments& a, int64_t b, const int64_t* numbers, bool is_done, const Shared& s) {
    const int64_t start = numbers[is_done ? kNextStart : kStart];
    const int64_t stop = numbers[is_done ? kNextStop : kStop];
    const uint8_t* state = a.state + numbers[kCanvas] * a.num_slots;
    if (THREAD == 0) {  // few and in order: not worth a scan
        int64_t num = 0;
        for (int64_t at = start; at < stop && at < start + a.width; ++at) {
            const bool is_open = state[at] == kMasked || (state[at] == kDecided && numbers[kRevokeMax] > 0);
            const int64_t row = numbers[kFirstRow] + num;
            if (is_open && num < numbers[kNumRows] && row < a.num_next) {
                a.next_request[row] = b;
                a.next_slot[row] = at;
                ++num;
            }
        }
        a.counts[b] = (int32_t)num;
    }
}

__device__ void unmask_one(const Arguments& a, int64_t b, const Shared& s) {
    const int64_t* numbers = a.table + b * kWidth;
    const int64_t start = numbers[kStart], rule = numbers[kRule], ranking = numbers[kRanking];
    const int64_t size = most_of(0, least_of(a.width, numbers[kStop] - start));
    const int64_t canvas = numbers[kCanvas] * a.num_slots;
    const double bound = real_of(numbers[kParameter]);
    const float scale = (float)real_of(numbers[kNoiseScale]);
    if (THREAD < 8) for (int i = THREAD; i < 8; i += THREADS) s.cell[i] = 0;
    find_rows(a, b, start, s);

    for (int64_t w = THREAD; w < size; w += THREADS) {
        const int32_t row = s.row[w];
        const bool is_open = row >= 0 && a.state[canvas + start + w] == kMasked;
        s.key[w] = kLeast;
        s.ticks[w] = 0;
        if (!is_open) continue;
        double score = a.score[row];
        if (ranking > 0) {
            const uint32_t word = philox((uint32_t)(start + w), numbers[kSeed], (uint32_t)numbers[kStep],
                                         (uint32_t)(numbers[kPlace] | kRankingPlace));
            const double uniform = ((double)word + 0.5) * 2.3283064365386962890625e-10;
            score = ranking == kRandom ? uniform : noisy(a.confidence[row], scale, uniform);
        }
        s.key[w] = ordered(rule == kRemask ? -score : score);
        s.ticks[w] = to_whole((rule == kEntropy ? a.entropy[row] : a.confidence[row]) * (double)kOne);
        add(&s.cell[0], 1);
        if (rule == kThreshold && a.confidence[row] >= bound) add(&s.cell[1], 1);
    }
    SYNC();

    const int64_t limit = to_whole(fmin(fmax(bound, -1e6), 1e6) * (double)kOne);
    for (int64_t w = THREAD; w < size; w += THREADS) {
        const int64_t key = s.key[w];
        int64_t n = 0, total = 0, most = 0;
        if (key != kLeast) {
            for (int64_t other = 0; other < size; ++other) {
                const int64_t other_key = s.key[other];
                if (other_key > key || (other_key == key && other <= w)) {
                    ++n;
                    total += s.ticks[other];
                    most = most_of(most, s.ticks[other]);
                }
            }
            bool holds = false;
            if (rule == kFactor) holds = (n + 1) * (kOne - s.ticks[w]) < limit;
            if (rule == kFrechet) {
                holds = most_of(total - (n - 1) * kOne, 0) - (kOne - s.ticks[w]) > limit;
            }
            if (rule == kEntropy) holds = total - most <= limit;
            if (holds) raise(&s.cell[2], n);
        }
        s.rank[w] = (int32_t)n;
    }
    SYNC();

    const int64_t num_open = s.cell[0];
    const int64_t kept = num_kept(numbers, num_open, s.cell[1], s.cell[2]);
    const int64_t first = rule == kRemask ? num_open - kept : 0;
    const int64_t most_revoked = least_of(numbers[kRevokeMax], kept - 1);
    const double below = real_of(numbers[kRevokeBelow]);
    for (int64_t w = THREAD; w < size; w += THREADS) {
        const int32_t row = s.row[w];
        const int64_t at = canvas + start + w;
        const bool was_decided = row >= 0 && a.state[at] == kDecided;
        const bool is_kept = s.key[w] != kLeast && s.rank[w] > first && s.rank[w] <= first + kept;
        if (is_kept) {
            write_id(a, at, a.token[row]);
            a.state[at] = kDecided;
        }
        // From here on the ticks are keys of what may be revoked.
        s.ticks[w] = was_decided && a.confidence[row] < below ? ordered(a.confidence[row]) : INT64_MAX;
    }
    SYNC();
    if (most_revoked > 0) {
        for (int64_t w = THREAD; w < size; w += THREADS) {
            const int64_t key = s.ticks[w];
            if (key == INT64_MAX) continue;
            int64_t before = 0;
            for (int64_t other = 0; other < size; ++other) {
                before += s.ticks[other] < key || (s.ticks[other] == key && other < w);
            }
            if (before < most_revoked) {
                write_id(a, canvas + start + w, numbers[kMaskId]);
                a.state[canvas + start + w] = kMasked;
                add(&s.cell[3], 1);
            }
        }
        SYNC();
    }
    if (a.next_request == nullptr) return;
    for (int64_t w = THREAD; w < size; w += THREADS) {
        if (a.state[canvas + start + w] == kMasked) add(&s.cell[4], 1);
    }
    SYNC();
    const bool is_done = s.cell[4] == 0;
    if (THREAD == 0) {
        a.counts[a.num_requests + b] = (int32_t)s.cell[4];
        a.counts[2 * a.num_requests + b] = (int32_t)kept;
        a.counts[3 * a.num_requests + b] = (int32_t)s.cell[3];
        a.counts[4 * a.num_requests + b] = (int32_t)numbers[is_done ? kCommittedDone : kCommittedOpen];
    }
    follow(a, b, numbers, is_done, s);
}

constexpr int64_t kBytesASlot = 24;

__device__ __forceinline__ Shared carve(unsigned char* memory, int64_t width) {
    Shared s;
    s.cell = (unsigned long long*)memory;
    s.key = (int64_t*)(memory + 64);
    s.ticks = s.key + width;
    s.rank = (int32_t*)(s.ticks + width);
    s.row = s.rank + width;
    return s;
}

#ifndef DYNIN_HOST
__global__ void __launch_bounds__(512) unmask_kernel(Arguments a) {
    extern __shared__ __align__(16) unsigned char memory[];
    unmask_one(a, blockIdx.x, carve(memory, a.width));
}
#endif

}  // namespace

// Decide one step of every request. Returns 0, or the number of a CUDA error.
extern "C" int dynin_unmask(const Arguments* arguments, void* stream) {
    const Arguments a = *arguments;
    const int64_t bytes = 64 + kBytesASlot * a.width;
#ifdef DYNIN_HOST
    (void)stream;
    for (int64_t i = 0; a.next_request != nullptr && i < a.num_next; ++i) {
        a.next_request[i] = -1;
        a.next_slot[i] = 0;
    }
    unsigned char* memory = new unsigned char[bytes];
    for (int64_t b = 0; b < a.num_requests; ++b) unmask_one(a, b, carve(memory, a.width));
    delete[] memory;
    return 0;
#else
    const cudaStream_t on = (cudaStream_t)stream;
    if (a.num_requests == 0) return 0;
    if (a.next_request != nullptr && a.num_next > 0) {
        cudaMemsetAsync(a.next_request, 0xFF, 8 * a.num_next, on);
        cudaMemsetAsync(a.next_slot, 0, 8 * a.num_next, on);
    }
    if (bytes > 48 * 1024) {
        const cudaError_t error = cudaFuncSetAttribute(
            unmask_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
        if (error != cudaSuccess) return (int)error;
    }
    const int threads = a.width <= 128 ? 128 : 512;
    unmask_kernel<<<(unsigned)a.num_requests, threads, (size_t)bytes, on>>>(a);
    return (int)cudaGetLastError();
#endif
}
