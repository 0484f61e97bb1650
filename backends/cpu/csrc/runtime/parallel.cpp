#include "parallel.h"

#include <algorithm>
#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace bnb_core {
namespace {

// Of libgomp, and of LLVM's and Intel's runtimes in their compatible form. Linked by name they would bring a second
// runtime beside torch's, which is a copy under a name of its own; torch loads its one for all to see.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;
    int (*in_parallel)() = nullptr;
    int (*max_threads)() = nullptr;
};

std::atomic<bool> forked{false};

#if defined(__unix__) || defined(__APPLE__)
template <class F>
bool find(F& function, const char* name) {
    function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
    return function != nullptr;
}

OpenMP load() {
    OpenMP found;
    if (find(found.parallel, "GOMP_parallel") && find(found.thread_num, "omp_get_thread_num") &&
        find(found.num_threads, "omp_get_num_threads") && find(found.in_parallel, "omp_in_parallel") &&
        find(found.max_threads, "omp_get_max_threads")) {
        // The threads of a runtime do not survive fork(), and libgomp would wait for them forever.
        pthread_atfork(nullptr, nullptr, [] { forked = true; });
        return found;
    }
    return {};
}
#else
OpenMP load() { return {}; }
#endif

const OpenMP& openmp() {
    static const OpenMP runtime = load();
    return runtime;
}

struct Work {
    std::int64_t count;
    void (*run)(void*, std::int64_t, std::int64_t);
    void* context;
};

void run_part(void* argument) {
    const Work& work = *static_cast<const Work*>(argument);
    const std::int64_t parts = openmp().num_threads(), part = openmp().thread_num();
    const std::int64_t size = work.count / parts, longer = work.count % parts;
    const std::int64_t begin = part * size + std::min(part, longer);
    const std::int64_t end = begin + size + (part < longer ? 1 : 0);
    if (begin < end) work.run(work.context, begin, end);
}

}  // namespace

void parallel_parts(std::int64_t count, std::int64_t least, int threads,
                    void (*run)(void* context, std::int64_t begin, std::int64_t end), void* context) {
    const std::int64_t useful =
        count / std::max<std::int64_t>(1, least) + (count % std::max<std::int64_t>(1, least) > 0);
    const std::int64_t parts = std::min<std::int64_t>(threads, useful);
    const OpenMP& runtime = openmp();
    if (count <= 0) return;
    if (parts <= 1 || runtime.parallel == nullptr || forked || runtime.in_parallel()) {
        run(context, 0, count);
        return;
    }
    Work work{count, run, context};
    runtime.parallel(run_part, &work, static_cast<unsigned>(parts), 0);
}

int max_threads() { return openmp().parallel == nullptr ? 1 : openmp().max_threads(); }

const char* threading() {
    if (openmp().parallel == nullptr) return "serial: no OpenMP runtime with GOMP_parallel is loaded";
    return forked ? "serial: this process was forked" : "GOMP_parallel";
}

}  // namespace bnb_core
