# Installs everything into a fresh prefix: the programs run from there, and the service names them there.
# Arguments: BUILD, SCRATCH.
file(REMOVE_RECURSE ${SCRATCH})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${SCRATCH} RESULT_VARIABLE result OUTPUT_VARIABLE output
  ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "install failed:\n${output}")
endif()
foreach(file bin/kvtier bin/kvtierd share/man/man1/kvtier.1 share/bash-completion/completions/kvtier
    share/zsh/site-functions/_kvtier share/fish/vendor_completions.d/kvtier.fish share/systemd/user/kvtierd.socket)
  if(NOT EXISTS ${SCRATCH}/${file})
    message(FATAL_ERROR "${file} is not installed")
  endif()
endforeach()
file(STRINGS ${SCRATCH}/share/systemd/user/kvtierd.service line REGEX "^ExecStart=")
if(NOT line STREQUAL "ExecStart=${SCRATCH}/bin/kvtierd")
  message(FATAL_ERROR "the service runs another program: ${line}")
endif()
foreach(program kvtier kvtierd)
  execute_process(COMMAND ${SCRATCH}/bin/${program} --version RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${program} does not run where it was installed")
  endif()
endforeach()
