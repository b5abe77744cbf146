// What may be off while a daemon runs. Each line that it says of that ("off" of the ops status and
// stats) begins with one of these texts, by which `kvtier doctor` finds the mend. Any thread.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace kvtier {

enum class OffTopic {
  kDisk,
  kHugePages,
  kWriting,
  kOptionalWriting,
  kAbstracts,
  kBaseRenditions,
  kRotation,
  kCodebooks,
  kKernels,
  kAdmission,
  kDeclining,
  kVerification,
};

inline constexpr std::array kOffTopics = {OffTopic::kDisk,      OffTopic::kHugePages,
                                          OffTopic::kWriting,   OffTopic::kOptionalWriting,
                                          OffTopic::kAbstracts, OffTopic::kBaseRenditions,
                                          OffTopic::kRotation,  OffTopic::kCodebooks,
                                          OffTopic::kKernels,   OffTopic::kAdmission,
                                          OffTopic::kDeclining, OffTopic::kVerification};
static_assert(static_cast<std::size_t>(kOffTopics.back()) + 1 == kOffTopics.size());

// How a line of this topic begins.
[[nodiscard]] constexpr const char* off_beginning(OffTopic topic) noexcept {
  switch (topic) {
    case OffTopic::kDisk:
      return "disk: ";
    case OffTopic::kHugePages:
      return "huge pages: ";
    case OffTopic::kWriting:
      return "writing: ";
    case OffTopic::kOptionalWriting:
      return "optional writing: ";
    case OffTopic::kAbstracts:
      return "abstracts of some segments: ";
    case OffTopic::kBaseRenditions:
      return "base renditions or low-rank keys of some segments: ";
    case OffTopic::kRotation:
      return "low-rank keys of some segments: ";
    case OffTopic::kCodebooks:
      return "key codes of some spaces: ";
    case OffTopic::kKernels:
      return "kernels: ";
    case OffTopic::kAdmission:
      return "admission: ";
    case OffTopic::kDeclining:
      return "declining of slow loads: ";
    case OffTopic::kVerification:
      return "background verification: ";
  }
  return "";
}
// None begins as another does: doctor would give it the other's mend.
static_assert([] {
  for (const OffTopic one : kOffTopics)
    for (const OffTopic other : kOffTopics)
      if (one != other && std::string_view(off_beginning(one)).starts_with(off_beginning(other)))
        return false;
  return true;
}());

}  // namespace kvtier
