// What keeps C++ exceptions inside: every extern "C" body runs in fence().
#ifndef GPULET_TORCH_SHIM_FENCE_H
#define GPULET_TORCH_SHIM_FENCE_H

#include "../shim.h"

#include <c10/util/Exception.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <sstream>
#include <string>
#include <utility>

namespace gtorch {

inline thread_local char error_text[4096];

inline int32_t fail(int32_t status, const char *text) noexcept {
  std::snprintf(error_text, sizeof error_text, "%s", text);
  return status;
}

// Our own refusals; everything else that flies is libtorch's.
struct Refusal {
  int32_t status;
  std::string text;
};

template <typename... Parts>
[[noreturn]] void refuse(int32_t status, const Parts &...parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Refusal{status, text.str()};
}

// The interpreter rethrows an allocation failure as its own exception type, so only the words
// of the message tell it from the model's other failures.
inline bool says_out_of_memory(const char *text) noexcept {
  for (const char *words : {"can't allocate memory", "out of memory", "not enough memory",
                            "bad_alloc", "Cannot allocate memory"}) {
    if (std::strstr(text, words) != nullptr) return true;
  }
  return false;
}

inline int32_t classify(int32_t status, const char *text) noexcept {
  return fail(says_out_of_memory(text) ? GTORCH_OUT_OF_MEMORY : status, text);
}

// Runs a body; whatever it throws becomes a status. `otherwise` is the class of libtorch's errors.
template <typename Body>
int32_t fence(int32_t otherwise, Body &&body) noexcept {
  try {
    body();
    return GTORCH_OK;
  } catch (const Refusal &refusal) {
    return fail(refusal.status, refusal.text.c_str());
  } catch (const std::bad_alloc &) {
    return fail(GTORCH_OUT_OF_MEMORY, "out of memory");
  } catch (const c10::Error &error) {
    try {
      return classify(otherwise, error.what_without_backtrace());
    } catch (...) {
      return fail(GTORCH_OUT_OF_MEMORY, "out of memory while describing an error");
    }
  } catch (const std::exception &error) {
    return classify(otherwise, error.what());
  } catch (...) {
    return fail(GTORCH_INTERNAL, "an exception of unknown type");
  }
}

inline void require(bool holds, const char *rule) {
  if (!holds) refuse(GTORCH_BAD_ARGUMENT, rule);
}

inline void write_text(const std::string &from, char *text, size_t size) {
  if (size != 0) std::snprintf(text, size, "%s", from.c_str());
}

}  // namespace gtorch

#endif
