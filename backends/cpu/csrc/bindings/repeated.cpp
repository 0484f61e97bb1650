// Calls of an operator with a signature seen before, without a line of Python: the outputs are allocated as they were,
// and the one kernel call that was made then is made again with the addresses of now. Of tensors that it writes to the
// versions are bumped, as the kernel's own entry does.
#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "bindings.h"
#include "signature.h"

namespace bnb_core {
namespace {

constexpr std::size_t kMostOutputs = 16;
constexpr std::size_t kMostSignatures = 1024;
// Of what is known of signatures, about: that of lists has each of their tensors.
constexpr std::size_t kMostBytes = 1 << 24;
constexpr std::size_t kBytesOfAddress = 32;

using Addresses = std::vector<Address>;

py::object checked(PyObject* result) {
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

template <class... T>
py::object call(const py::object& function, const T&... args) {
    const std::array<PyObject*, sizeof...(T)> pointers = {args.ptr()...};
    return checked(PyObject_Vectorcall(function.ptr(), pointers.data(), pointers.size(), nullptr));
}

// How to make a call of one signature again.
struct Known {
    // Where an address comes from: a tensor among the arguments, an output, or nowhere (it is 0).
    struct Source {
        enum { argument, output, none } kind;
        std::size_t index;
    };
    struct Output {
        py::object size, stride, dtype;  // none for an output that is None
    };

    long long epoch;
    py::object calls, kernel;            // the count of calls stands at calls[kernel]
    std::unique_ptr<RecordedCall> call;  // none for a call that cannot be made again
    std::vector<Source> sources;
    std::vector<Output> outputs;
    bool single;
};

// What stands before the entry of an operator.
class RepeatedCalls {
  public:
    // entry: the operator, in Python. settled(*args): the counts and the name of the kernel that runs for all calls of
    // this signature while the epoch, an attribute of settings, is the same; None where there is no such kernel.
    // written: positions of the arguments, tensors or lists of them, that the operator writes to. unread: of those, of
    // type float, that do not belong to the signature.
    RepeatedCalls(Reader reader, py::object entry, py::object settled, py::object settings, py::object num_threads,
                  py::object bump, py::object empty, std::vector<Py_ssize_t> written, std::vector<bool> unread)
        : reader_(std::move(reader)),
          entry_(std::move(entry)),
          settled_(std::move(settled)),
          settings_(std::move(settings)),
          num_threads_(std::move(num_threads)),
          bump_(std::move(bump)),
          empty_(std::move(empty)),
          written_(std::move(written)),
          unread_(std::move(unread)) {}

    py::object operator()(PyObject* const* args, Py_ssize_t count) {
        std::string signature;
        Addresses places;
        std::vector<double> numbers;
        if (!read(args, count, signature, places, numbers)) return slow(args, count);
        const long long epoch = this->epoch();
        const std::shared_ptr<const Known> known = find(signature);
        if (known != nullptr && known->epoch == epoch) {
            if (known->call == nullptr) return slow(args, count);
            py::object result = repeat(*known, places, numbers);
            for (const Py_ssize_t i : written_) bump(args[i]);
            return result;
        }
        Recorder recorder;
        py::object result = slow(args, count);
        auto fresh = recorder.count == 1 && recorder.last != nullptr
                         ? learn(args, count, places, numbers, std::move(recorder.last), result, epoch)
                         : never(epoch);
        if (fresh != nullptr) remember(signature, std::move(fresh));
        return result;
    }

  private:
    bool read(PyObject* const* args, Py_ssize_t count, std::string& signature, Addresses& places,
              std::vector<double>& numbers) const {
        signature.reserve(256);
        places.reserve(16);
        for (Py_ssize_t i = 0; i < count; ++i) {
            if (unread_[static_cast<std::size_t>(i)] && PyFloat_CheckExact(args[i])) {
                numbers.push_back(PyFloat_AS_DOUBLE(args[i]));
                signature += 'u';
                continue;
            }
            if (!reader_.argument(args[i], signature, places)) return false;
        }
        return true;
    }

    void bump(PyObject* written) const {
        if (written == Py_None) return;
        const auto tensors = py::reinterpret_borrow<py::object>(written);
        call(bump_, reader_.is_tensor(written) ? py::make_tuple(tensors) : tensors);
    }

    py::object slow(PyObject* const* args, Py_ssize_t count) const {
        return checked(PyObject_Vectorcall(entry_.ptr(), args, static_cast<std::size_t>(count), nullptr));
    }

    long long epoch() const {
        return PyLong_AsLongLong(checked(PyObject_GetAttr(settings_.ptr(), name_of_epoch_.ptr())).ptr());
    }

    std::shared_ptr<const Known> find(const std::string& signature) const {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = known_.find(signature);
        return found == known_.end() ? nullptr : found->second;
    }

    void remember(const std::string& signature, std::shared_ptr<const Known> known) {
        std::unordered_map<std::string, std::shared_ptr<const Known>> dropped;  // destroyed without the lock
        const std::lock_guard<std::mutex> lock(mutex_);
        if (known_.size() >= kMostSignatures || bytes_ >= kMostBytes) {
            known_.swap(dropped);
            bytes_ = 0;
        }
        std::shared_ptr<const Known>& place = known_[signature];
        if (place == nullptr) bytes_ += signature.size() + known->sources.size() * kBytesOfAddress;
        std::swap(place, known);
    }

    py::object repeat(const Known& known, const Addresses& places, const std::vector<double>& numbers) const {
        count_call(known);
        std::array<py::object, kMostOutputs> outputs;
        std::array<Address, kMostOutputs> made{};
        Addresses addresses(known.sources.size());
        for (std::size_t i = 0; i < known.outputs.size(); ++i) {
            const Known::Output& output = known.outputs[i];
            outputs[i] = output.size ? call(empty_, output.size, output.stride, output.dtype) : py::none();
            dlpack::Tensor tensor{};
            if (output.size && !reader_.tensor(outputs[i].ptr(), tensor)) throw std::runtime_error("not a tensor");
            made[i] = address(tensor);
        }
        for (std::size_t i = 0; i < known.sources.size(); ++i) {
            const Known::Source source = known.sources[i];
            if (source.kind == Known::Source::argument) addresses[i] = places[source.index];
            if (source.kind == Known::Source::output) addresses[i] = made[source.index];
        }
        known.call->repeat(addresses.data(), numbers.data(), call(num_threads_).cast<int>());
        if (known.single) return outputs[0];
        if (known.outputs.empty()) return py::none();
        py::tuple result(known.outputs.size());
        for (std::size_t i = 0; i < result.size(); ++i) result[i] = std::move(outputs[i]);
        return std::move(result);
    }

    static void count_call(const Known& known) {
        PyObject* calls = PyDict_GetItemWithError(known.calls.ptr(), known.kernel.ptr());
        const long long before = calls == nullptr ? 0 : PyLong_AsLongLong(calls);
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
        const py::object after = checked(PyLong_FromLongLong(before + 1));
        if (PyDict_SetItem(known.calls.ptr(), known.kernel.ptr(), after.ptr()) != 0) throw py::error_already_set();
    }

    // For a signature whose calls are not one native call, as a rule.
    static std::shared_ptr<const Known> never(long long epoch) {
        auto known = std::make_shared<Known>();
        known->epoch = epoch;
        return known;
    }

    // None where the call cannot be repeated: an address in it is that of no argument and no output, or of two, or an
    // output is not written by it.
    std::shared_ptr<const Known> learn(PyObject* const* args, Py_ssize_t count, const Addresses& places,
                                       const std::vector<double>& numbers, std::unique_ptr<RecordedCall> recorded,
                                       const py::object& result, long long epoch) const {
        const py::object settled =
            checked(PyObject_Vectorcall(settled_.ptr(), args, static_cast<std::size_t>(count), nullptr));
        if (settled.is_none() || recorded->numbers() != numbers) return never(epoch);
        auto known = std::make_shared<Known>();
        known->epoch = epoch;
        std::tie(known->calls, known->kernel) = settled.cast<std::tuple<py::object, py::object>>();
        known->single = reader_.is_tensor(result.ptr());
        std::unordered_map<Address, Known::Source> sources;
        for (std::size_t i = 0; i < places.size(); ++i) {
            const Known::Source source{Known::Source::argument, i};
            if (places[i] != 0 && !sources.insert({places[i], source}).second) return nullptr;
        }
        if (!known->single && !result.is_none() && PyTuple_Check(result.ptr()) == 0) return nullptr;
        const py::tuple outputs = known->single      ? py::make_tuple(result)
                                  : result.is_none() ? py::tuple()
                                                     : py::reinterpret_borrow<py::tuple>(result);
        if (outputs.size() > kMostOutputs) return nullptr;
        std::size_t unwritten = 0;
        for (const py::handle output : outputs) {
            const Known::Source source{Known::Source::output, known->outputs.size()};
            known->outputs.emplace_back();
            if (output.is_none()) continue;
            dlpack::Tensor tensor{};
            if (!reader_.tensor(output.ptr(), tensor) || tensor.device_type != dlpack::kCpu || !contiguous(tensor)) {
                return nullptr;
            }
            if (address(tensor) != 0) {
                if (!sources.insert({address(tensor), source}).second) return nullptr;
                ++unwritten;
            }
            // The allocator takes exactly tuples, which a torch.Size is not.
            known->outputs.back() = {py::tuple(py::list(output.attr("shape"))), output.attr("stride")(),
                                     output.attr("dtype")};
        }
        for (const Address place : recorded->addresses()) {
            Known::Source source{Known::Source::none, 0};
            if (place != 0) {
                const auto found = sources.find(place);
                if (found == sources.end()) return nullptr;
                source = found->second;
            }
            if (source.kind == Known::Source::output) --unwritten;
            known->sources.push_back(source);
        }
        if (unwritten != 0) return nullptr;
        known->call = std::move(recorded);
        return known;
    }

    Reader reader_;
    py::object entry_, settled_, settings_, num_threads_, bump_, empty_;
    std::vector<Py_ssize_t> written_;
    std::vector<bool> unread_;
    py::object name_of_epoch_ = checked(PyUnicode_InternFromString("epoch"));
    mutable std::mutex mutex_;
    std::unordered_map<std::string, std::shared_ptr<const Known>> known_;
    std::size_t bytes_ = 0;  // of what is in known_
};

}  // namespace

void bind_repeated(py::module_& m) {
    m.def(
        "without_python",
        [](py::object entry, py::object settled, py::object settings, const py::object& torch, py::object empty,
           const py::tuple& written, const py::tuple& unread) -> py::object {
            Reader reader(torch);
            if (!reader.available()) return entry;
            std::vector<Py_ssize_t> positions;
            for (const py::handle position : written) positions.push_back(position.cast<Py_ssize_t>());
            std::vector<bool> numbers;
            for (const py::handle number : unread) numbers.push_back(number.cast<bool>());
            return function("without_python",
                            std::make_unique<RepeatedCalls>(
                                std::move(reader), std::move(entry), std::move(settled), std::move(settings),
                                torch.attr("get_num_threads"), torch.attr("_C").attr("_increment_version"),
                                std::move(empty), std::move(positions), std::move(numbers)));
        },
        py::arg("entry"), py::arg("settled"), py::arg("settings"), py::arg("torch"), py::arg("empty"),
        py::arg("written"), py::arg("unread"),
        "What stands before the entry of an operator; the entry itself where torch is too old for it.");
}

}  // namespace bnb_core
